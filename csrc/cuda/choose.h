// Which kernel runs a recurrence, as one function of the sizes, the dtype and the device.
#pragma once

#include <cstdint>
#include <string>

#include "rnn.h"

namespace fastrnn::cuda {

enum class Kernel : int {
  kStep,     // a GEMM and a pointwise kernel for each step (step.cu)
  kVector,   // one block per few rows, FMA units (vector.cu)
  kTile,     // one block per tile of rows, tensor cores (tile.cu)
  kCluster,  // a thread-block cluster per group of rows (cluster.cu)
  kGrid      // groups of blocks that exchange through L2 (grid.cu)
};

// What a launch needs; a launcher takes exactly the configurations that it lists itself.
struct Choice {
  Kernel kernel;
  int rows;           // of the batch, in a group
  int blocks;         // in a group
  int threads;        // in a block
  int registers;      // of a thread, at most
  int shared_bytes;   // of a block
  int64_t workspace;  // bytes of global memory, zero at the start; 0: none
  int units;          // hidden units that there is room for
};

struct Device {
  int capability;        // 90 for sm_90
  int multiprocessors;   // visible to the process
  int shared_per_block;  // bytes, with opt-in
  int shared_per_multiprocessor;
  int registers_per_multiprocessor;
  bool cooperative;
};

struct Problem {
  Dtype dtype;
  bool backward;
  bool tf32;
  int64_t seq_len;
  int64_t batch;
  int64_t hidden_size;
  int num_directions;
};

// The kernel for this problem on this device. `forced` (empty: free choice) is a kernel's name,
// "step", "vector", "tile", "cluster" or "grid": then that one where it can run, else step.
Choice choose(const Problem& problem, const Device& device, const std::string& forced = "");

// Whether the device can hold one block, and for clusters one group, of this configuration.
bool can_launch(const Choice& choice, const Device& device);

const char* name_of(Kernel kernel);

}  // namespace fastrnn::cuda
