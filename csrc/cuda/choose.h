// Which kernel runs a recurrence, as one function of the sizes, the dtype and the device.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/configurations.h"

namespace fastrnn::cuda {

constexpr int kReservedShared = 1 << 10;  // bytes that the system takes of a block's shared memory

// A configuration, and what a launch of it needs.
struct Choice {
  Kernel kernel{};
  int rows = 0;           // of the batch, in a group; these are 0 of a kernel without groups
  int blocks = 0;         // in a group
  int threads = 0;        // in a block
  int registers = 0;      // of a thread, at most
  int shared_bytes = 0;   // of a block
  int units = 0;          // hidden units that there is room for
  int configuration = 0;  // its place in kConfigurations
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
  bool has_hx = true;            // else the first step needs no product
  bool torch_can_serve = false;  // the whole call, which is inference
  bool packed = false;           // rows of different lengths, for cuDNN
  bool leaks = false;            // as only the step kernels do
};

// A configuration of kConfigurations as a choice, where it can serve this problem on this device.
std::optional<Choice> choice_of(const Configuration& c, const Problem& problem,
                                const Device& device);

// Every configuration with groups, whatever device and call it serves.
std::vector<Choice> configurations();

// The kernel for this problem on this device. `forced` is empty: free choice; or a kernel's name,
// "torch", "step", "vector", "tile" or "cluster": its best configuration, or step where it has none
// for the call; or a configuration's name, such as "cluster:1024x8x8". Throws std::invalid_argument
// for any other name, and where that configuration cannot serve the call.
Choice choose(const Problem& problem, const Device& device, const std::string& forced = "");

// Estimated nanoseconds of a step of all rows, by which choose() compares.
double step_time(const Configuration& c, const Problem& problem, const Device& device);

// Whether the device can hold one block of this configuration.
bool can_launch(const Choice& choice, const Device& device);
// Blocks of it that a multiprocessor holds at a time.
int blocks_at_once(const Choice& choice, const Device& device);
// Groups of it that run at a time, by the sizes alone.
int estimate_groups_at_once(const Choice& choice, const Device& device);

// The architecture whose code a device runs, in a build for, say, "sm_80 sm_90a": the largest of
// its major version that is not above it (with an "a", only the very same), else the newest of all,
// as PTX, if that is not above it. 0: it runs none.
int compiled_for(int capability, const std::string& architectures);

// As name_of(Configuration).
std::string name_of(const Choice& choice);

}  // namespace fastrnn::cuda
