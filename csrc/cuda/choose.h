// Which kernel runs a recurrence, as one function of the sizes, the dtype and the device.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/configurations.h"

namespace fastrnn::cuda {

constexpr int kReservedShared = 1 << 10;  // bytes of shared memory of the system's own, per block

// A configuration, and what a launch of it needs.
struct Choice {
  Kernel kernel;
  int rows;           // of the batch, in a group
  int blocks;         // in a group
  int threads;        // in a block
  int registers;      // of a thread, at most
  int shared_bytes;   // of a block
  int units;          // hidden units that there is room for
  int configuration;  // its place in kConfigurations
};

struct Device {
  int capability;        // 90 for sm_90
  int multiprocessors;   // visible to the process
  int shared_per_block;  // bytes, with opt-in
  int shared_per_multiprocessor;
  int registers_per_multiprocessor;
  // For each of kConfigurations the groups that run at a time (occupancy.h); null: estimated.
  const int* groups_at_once = nullptr;
  int compiled_for = capability;  // what its machine code was compiled for, which may be less
};

struct Problem {
  Dtype dtype;
  bool backward;
  bool tf32;
  int64_t seq_len;
  int64_t batch;
  int64_t hidden_size;
  int num_directions;
  bool torch_can_serve = false;  // the whole call, which is inference
};

// A configuration of kConfigurations as a choice, where it can serve this problem on this device.
std::optional<Choice> choice_of(const Configuration& c, const Problem& problem,
                                const Device& device);

// What step_time() reckons with: estimates from published latencies; to be measured
// (benchmarks/gpu/fit.py). A cycle is 1/1.7 ns; a rate is that of a multiprocessor.
struct StepTimes {
  double latency = 170;         // cycles of every step: loads, shuffles, tanh and the barrier
  double fma_rate = 100;        // multiply-adds a cycle on FMA units, of 128
  double tf32_rate = 300;       // the same on tensor cores, of 512, in mma.sync's practice
  double narrow_rate = 600;     // the same in float16 and bfloat16, of 1024
  double warp_load = 1;         // cycles of a warp's load from shared memory, for FMA units
  double shared_rate = 128;     // bytes a cycle from shared memory, for tensor cores
  double cluster_hop = 300;     // cycles from a block of a cluster to another
  double cluster_rate = 18;     // bytes a cycle into each block of a cluster
  double weights_rate = 4;      // elements of w_hh a cycle, before the first step
  double launches = 5000;       // nanoseconds of the launches of a step: a GEMM and a kernel
  double product_rate = 15000;  // multiply-adds a nanosecond of that GEMM, on the whole device
  double torch_small = 1.4;     // cuDNN's time of a small step, in times of our GEMM and kernel
  double torch_large = 0.9;     // the same of a large one
};

// Every configuration with groups, whatever device and call it serves.
std::vector<Choice> configurations();

// The kernel for this problem on this device. `forced` is empty: free choice; or a kernel's name,
// "torch", "step", "vector", "tile" or "cluster": its best configuration, or step where it has none
// for the call; or a configuration's name, such as "cluster:1024x8x8". Throws std::invalid_argument
// for any other name, and where that configuration cannot serve the call.
Choice choose(const Problem& problem, const Device& device, const std::string& forced = "");

// Estimated nanoseconds of a step of all rows.
double step_time(const Configuration& c, const Problem& problem, const Device& device,
                 const StepTimes& times = {});

// Whether the device can hold one block of this configuration.
bool can_launch(const Choice& choice, const Device& device);
// Blocks of it that a multiprocessor holds at a time.
int blocks_at_once(const Choice& choice, const Device& device);
// Groups of it that run at a time, by the sizes alone.
int estimate_groups_at_once(const Choice& choice, const Device& device);

// What the code that a device runs was compiled for, of a build for such as "sm_80 sm_90a": the
// largest of its major version that is not above it (with an "a" the very same), else the newest of
// all, as PTX, if that is not above it. 0: it runs none.
int compiled_for(int capability, const std::string& architectures);

// As name_of(Configuration).
std::string name_of(const Choice& choice);

}  // namespace fastrnn::cuda
