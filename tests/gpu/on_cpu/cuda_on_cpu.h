// The primitives of csrc/cuda/device.cuh with a meaning on the CPU, so that g++ compiles the
// kernels' own source. CUDA threads are fibers of one system thread, in an order drawn anew for
// each launch; a fiber gives way only where it waits. Under ThreadSanitizer each is a thread of its
// own, and only what PTX orders is ordered: barriers, mbarriers, releases and acquires; not
// shuffles, mma, or the order of the fibers. (Stronger than PTX in one respect: what a fiber wrote
// before store_async counts as released with it.)
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <source_location>
#include <string_view>
#include <tuple>

#include "banks.h"
#include "runtime_on_cpu.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define FASTRNN_DEVICE inline
#define FASTRNN_KERNEL(threads, blocks)

using Where = std::source_location;

// Set for the fiber that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace fastrnn::cuda {

struct Launch {
  dim3 grid;
  int threads;
  int shared_bytes;
  cudaStream_t stream;
  int cluster = 1;
};

// fibers.cpp, which ThreadSanitizer does not instrument.
namespace fibers {
cudaError_t run(const Launch& how, const std::function<void()>& kernel);
void give_way();               // in a loop that waits for memory
void* block_memory(int rank);  // dynamic shared memory, of a block of the cluster
int cluster_rank();
void block_barrier(int id, int threads);
void cluster_barrier(bool wait);
// All lanes of a warp hand in `bytes` at most 64; when the last has, `compute` gets them all; then
// each takes its own back.
constexpr int kSlot = 64;
void collective(void* data, int bytes, void (*compute)(unsigned char (*slots)[kSlot], int argument),
                int argument);
void init_barrier(void* barrier, int count);
void expect(void* barrier, int bytes);
void arrive(void* barrier);
bool wait_phase(void* barrier, int parity);  // false: the kernel gives up
void store_async(void* to, const void* from, int bytes, void* barrier);
// Whether a test has taken out this call, "name in function" or each "name".
bool is_missing(std::string_view name, const Where& where);
bool comes_early();  // counts a copy; whether it happens at once, as drawn
void copy_async(void* to, const void* from, int bytes, bool valid);
void commit_copies();
int open_groups();
bool next_copy(void** to, const void** from, int* bytes, bool* valid);  // of the oldest group
}  // namespace fibers

// --- Storage types and arithmetic

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

template <typename S>
S half_of(uint32_t pair, int high) {
  return {static_cast<uint16_t>(high ? pair >> 16 : pair)};
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Half x) { return static_cast<float>(std::bit_cast<_Float16>(x.bits)); }
inline float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
inline void narrow(float* to, float x) { *to = x; }
inline void narrow(double* to, double x) { *to = x; }
inline void narrow(Half* to, float x) {
  to->bits = std::bit_cast<uint16_t>(static_cast<_Float16>(x));
}
inline void narrow(BFloat16* to, float x) {
  const uint32_t u = bits_of(x);
  to->bits = x != x ? 0x7fff : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
template <typename T>
uint32_t load_bits(const T* p, bool there) {
  T x{};
  if (there) x = *p;
  if constexpr (sizeof(T) == 4) {
    return bits_of(x);
  } else {
    return x.bits;
  }
}
inline uint32_t tf32_of(float x) {
  const uint32_t u = bits_of(x);
  return (u >> 23 & 0xff) == 0xff ? u : (u + 0x1000) & ~0x1fffu;
}
// By how many ulp a test lets the device's approximation of `exact` err.
inline int planted_ulps(float exact) {
  const uint32_t size = bits_of(exact) & 0x7fffffff;
  const int spread = planted.most_ulps - planted.least_ulps + 1;
  return planted.least_ulps + static_cast<int>((size * 2654435761u >> 16) % spread);
}
// As the device's approximation: never denormal, and off by what a test plants, which `sign` turns
// round.
inline float approximate(float exact, int sign) {
  const uint32_t size = bits_of(exact) & 0x7fffffff, minus = bits_of(exact) ^ size;
  if (size < 0x800000) return float_of(minus);
  if (size >= 0x7f800000) return exact;  // infinity or NaN
  return float_of(minus | std::min(size + sign * planted_ulps(exact), 0x7f800000u));
}
// In 1 / (2^x + 1) errors of the same sign would cancel.
inline float fast_exp2(float x) { return approximate(std::exp2(x), 1); }
inline float fast_reciprocal(float x) { return approximate(1 / x, -1); }
// Off by 2^-11 where the others are by 2 ulp: the limits of each.
inline float fast_tanh(float x) {
  const float exact = std::tanh(x);
  return std::clamp(exact * (1 + std::ldexp(float(planted_ulps(exact)), -12)), -1.0f, 1.0f);
}

inline uint32_t unknown(uint32_t x) { return x; }
template <typename T>
T* further(T* p, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + bytes);
}

// --- A block's threads

template <typename T>
T* shared_memory() {
  return static_cast<T*>(fibers::block_memory(fibers::cluster_rank()));
}
inline void block_sync(const Where& where = Where::current()) {
  if (!fibers::is_missing("block_sync", where)) fibers::block_barrier(0, blockDim.x);
}
// Orders memory, as a barrier of the warp's own.
inline void warp_sync(const Where& where = Where::current()) {
  if (!fibers::is_missing("warp_sync", where))
    fibers::block_barrier(16 + static_cast<int>(threadIdx.x) / 32, 32);
}

template <typename T>
T shuffle_xor(T x, int mask) {
  fibers::collective(
      &x, sizeof(T),
      [](unsigned char (*slots)[fibers::kSlot], int mask) {
        T values[32];
        for (int l = 0; l < 32; ++l) std::memcpy(&values[l], slots[l], sizeof(T));
        for (int l = 0; l < 32; ++l) std::memcpy(slots[l], &values[l ^ mask], sizeof(T));
      },
      mask);
  return x;
}

// --- Shared memory

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* p) { return reinterpret_cast<SharedAddress>(p); }

template <typename T>
T load_shared(const T* p, const Where& where = Where::current()) {
  note(banks::Access::kLoad, p, sizeof(T), where);
  return *p;
}
template <typename T>
void store_shared(T* p, T x, const Where& where = Where::current()) {
  note(banks::Access::kStore, p, sizeof(T), where);
  *p = x;
}

struct MatrixRow {
  uint32_t words[4];
  bool given;
};
// Of kMatrices 8 x 8 matrices a lane gives a row, and gets two elements of each.
template <int kMatrices, bool kTransposed>
void load_matrices_as(uint32_t (&to)[kMatrices], const void* row, const Where& where) {
  MatrixRow own{};
  own.given = static_cast<int>(threadIdx.x) % 32 < 8 * kMatrices;
  if (own.given) {
    if (reinterpret_cast<uintptr_t>(row) % 16) std::abort();
    note(banks::Access::kMatrices, row, 16, where);
    std::memcpy(own.words, row, 16);
  }
  fibers::collective(
      &own, sizeof own,
      [](unsigned char (*slots)[fibers::kSlot], int matrices) {
        MatrixRow rows[32];
        for (int l = 0; l < 32; ++l) std::memcpy(&rows[l], slots[l], sizeof(MatrixRow));
        const auto element = [&](int m, int i, int j) {
          return rows[8 * m + i].words[j / 2] >> j % 2 * 16 & 0xffff;
        };
        for (int l = 0; l < 32; ++l) {
          uint32_t out[4] = {};
          for (int m = 0; m < matrices; ++m) {
            const int one = l / 4, two = l % 4 * 2;
            out[m] = kTransposed ? element(m, two, one) | element(m, two + 1, one) << 16
                                 : element(m, one, two) | element(m, one, two + 1) << 16;
          }
          std::memcpy(slots[l], out, sizeof out);
        }
      },
      kMatrices);
  std::memcpy(to, &own, sizeof to);
}
template <int kMatrices>
void load_matrices(uint32_t (&to)[kMatrices], const void* row,
                   const Where& where = Where::current()) {
  load_matrices_as<kMatrices, false>(to, row, where);
}
template <int kMatrices>
void load_transposed(uint32_t (&to)[kMatrices], const void* row,
                     const Where& where = Where::current()) {
  load_matrices_as<kMatrices, true>(to, row, where);
}

template <int kBytes>
void copy_async(void* to, const void* from, bool valid = true,
                const Where& where = Where::current()) {
  note(banks::Access::kCopy, to, kBytes, where);
  if (reinterpret_cast<uintptr_t>(to) % kBytes ||
      (valid && reinterpret_cast<uintptr_t>(from) % kBytes))
    std::abort();
  if (fibers::comes_early())
    valid ? std::memcpy(to, from, kBytes) : std::memset(to, 0, kBytes);
  else
    fibers::copy_async(to, from, kBytes, valid);
}
inline void commit_copies(const Where& where = Where::current()) {
  if (!fibers::is_missing("commit_copies", where)) fibers::commit_copies();
}
// Those copies that have not come early happen here, as late as they may.
template <int kGroups>
void wait_copies(const Where& where = Where::current()) {
  if (fibers::is_missing("wait_copies", where)) return;
  while (fibers::open_groups() > kGroups) {
    void* to;
    const void* from;
    int bytes;
    bool valid;
    while (fibers::next_copy(&to, &from, &bytes, &valid))
      valid ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes);
  }
}

// --- Barriers in shared memory

using SharedBarrier = uint64_t;
inline void init_barrier(SharedBarrier* barrier, int count) {
  fibers::init_barrier(barrier, count);
}
inline void publish_barriers(const Where& where = Where::current()) {
  fibers::is_missing("publish_barriers", where);  // a test may ask, but misses nothing
}
inline void arrive_expecting(SharedBarrier* barrier, int bytes,
                             const Where& where = Where::current()) {
  fibers::expect(barrier, fibers::is_missing("bytes", where) ? bytes - 16 : bytes);
  if (!fibers::is_missing("arrival", where)) fibers::arrive(barrier);
}
// Sleeps until the phase is over; false, at once from then on, where every thread waits.
inline bool try_wait(SharedBarrier* barrier, int parity, const Where& where = Where::current()) {
  return fibers::is_missing("try_wait", where) || fibers::wait_phase(barrier, parity);
}
inline uint32_t clocks() {
  static uint32_t now = 0;
  return now += 1 << 20;
}
inline uint32_t load_volatile(const uint32_t* p) { return *p; }
template <typename T>
void store_volatile(T* p, const T& x) {
  *p = x;
}

// --- Clusters

inline int cluster_rank() { return fibers::cluster_rank(); }
inline SharedAddress map_shared(const void* p, int rank) {
  return shared_address(p) - shared_address(fibers::block_memory(cluster_rank())) +
         shared_address(fibers::block_memory(rank));
}
inline void cluster_arrive(const Where& where = Where::current()) {
  if (!fibers::is_missing("cluster_arrive", where)) fibers::cluster_barrier(false);
}
inline void cluster_wait(const Where& where = Where::current()) {
  if (!fibers::is_missing("cluster_wait", where)) fibers::cluster_barrier(true);
}
inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
template <typename T>
void store_async(SharedAddress to, T x, SharedAddress barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if (to % sizeof(T) || barrier % 8) std::abort();
  fibers::store_async(reinterpret_cast<void*>(to), &x, sizeof(T), reinterpret_cast<void*>(barrier));
}

// --- Between blocks

inline void add_release(uint32_t* p, uint32_t x) {
  std::atomic_ref(*p).fetch_add(x, std::memory_order_release);
}
inline void atomic_max(uint64_t* p, uint64_t x) {
  std::atomic_ref all(*p);
  for (uint64_t old = all.load(); old < x && !all.compare_exchange_weak(old, x);) {
  }
}

[[noreturn]] inline void fail() { std::abort(); }

// Adds eight roundings of float16 to one number of the last unit of the last row: to the output at
// the first step, of all recurrences ("unit"), of packed ones ("packed"), or of those by steps
// ("step"); to grad_hx; or to grad_w_hh.
template <typename R>
void spoil(const R& r, bool by_steps) {
  const std::string_view what = planted.spoiled;
  const auto add_last = [&](void* data, int64_t rows, int64_t row_stride) {
    const int64_t i = (rows - 1) * row_stride + r.hidden_size - 1;
    const auto to = [&]<typename S>(S* x) { narrow(x + i, widen(x[i]) + 0x1p-8f); };
    switch (static_cast<int>(r.dtype)) {
      case 0:
        return to(static_cast<float*>(data));
      case 2:
        return to(static_cast<BFloat16*>(data));
      case 3:
        return to(static_cast<Half*>(data));
    }
  };
  const auto add = [&](void* data, int64_t row_stride) {
    add_last(data, r.rows.batch, row_stride);
  };
  if constexpr (requires { r.direction[0].grad_w_hh; }) {
    if (what == "grad_w_hh") add_last(r.direction[0].grad_w_hh, r.hidden_size, r.hidden_size);
  } else if constexpr (requires { r.direction[0].hn; }) {
    const auto& output = r.direction[0].output;
    const bool wanted =
        by_steps ? what == "step" : what == "unit" || (what == "packed" && r.rows.start);
    if (wanted) add(output.data, output.row_stride);
  } else {
    if (what == "grad_hx" && !by_steps) add(r.direction[0].grad_hx, r.hidden_size);
  }
}

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, Parameters... arguments) {
  const cudaError_t error = fibers::run(how, [&] { kernel(arguments...); });
  if constexpr (sizeof...(Parameters) == 1) {
    const auto& only = std::get<0>(std::tie(arguments...));
    if constexpr (requires { only.direction; }) spoil(only, false);
    if constexpr (requires { only.recurrence; }) spoil(only.recurrence, true);
  }
  return error;
}

}  // namespace fastrnn::cuda

#include "mma_on_cpu.h"
