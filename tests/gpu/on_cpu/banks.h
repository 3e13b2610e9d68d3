// How many wavefronts the banks of shared memory need for a warp's accesses: each of 32 banks gives
// or takes 4 bytes of one address in each. Counted are the calls of load_shared, store_shared,
// copy_async and the loads of matrices; not what comes from other blocks.
#pragma once

#include <cstdint>
#include <map>
#include <source_location>
#include <string>

namespace fastrnn::cuda::banks {

enum class Access { kLoad, kMatrices, kStore, kCopy };

struct Lanes {
  uintptr_t address[32] = {};  // 0: the lane does nothing
  int bytes = 0;               // of each lane
};
// As an H200 does it (benchmarks/gpu/limits.cu): 128 bytes of neighbouring lanes at a time, and 256
// of loads of 16 bytes where each lane shares its address with its neighbour. copy_async counts as
// a store.
int wavefronts(const Lanes& lanes, Access access);

// Of the first block of all launches between start() and stop().
struct Count {
  int64_t instructions = 0, wavefronts = 0;  // of warps
};
inline bool counting = false;
void start();
std::map<std::string, Count> stop();  // by function and access: "product load"

// An access of the thread that runs. The n-th of a lane at a place of the source is done with the
// n-th of the warp's other lanes; stop() checks that they have as many, or none.
void record(Access access, const void* p, int bytes, const std::source_location& where);
inline void note(Access access, const void* p, int bytes, const std::source_location& where) {
  if (counting) record(access, p, bytes, where);
}

}  // namespace fastrnn::cuda::banks
