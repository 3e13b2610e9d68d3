// The gradients of a layer's weights and biases over all steps, for calls so small that a product
// of cuBLAS for each would take longer to launch than to run.
#pragma once

#include "cuda/recurrence.h"

namespace fastrnn::cuda {

struct WeightGradsDirection {
  bool reverse;
  Sequence grad_pre;  // [T, B, H]
  Sequence output;    // [T, B, H], of the forward pass
  const void* hx;     // [B, H], or null: zeros
  int64_t hx_row_stride;
  void* grad_w_ih;  // [H, I] contiguous
  void* grad_w_hh;  // [H, H] contiguous
  void* grad_b_ih;  // [H]; this and grad_b_hh null: there are no biases
  void* grad_b_hh;
};

// Beyond a row's length neither grad_pre nor the input is read.
struct WeightGrads {
  Dtype dtype;
  Rows rows;
  int64_t input_size;
  int64_t hidden_size;
  Sequence input;  // [T, B, I], of the layer
  int num_directions;
  WeightGradsDirection direction[2];
};

// From each row, a block takes this many units of grad_pre, and as many columns of their factors.
constexpr int kGradsTile = 8;
constexpr int64_t tiles_of(int64_t size) { return (size + kGradsTile - 1) / kGradsTile; }

// Whether one launch is expected to be faster than the products: four launches or five for each
// direction, of at least 2 us each in a captured graph, which are 15,000 clocks. Not measured: a
// block takes kStart for itself, issues about 3200 instructions of warps for kRows rows, four a
// clock, and waits kWait until they have come, by the simulator of make cuda-check.
inline bool grads_in_one_launch(int64_t rows, int64_t input_size, int64_t hidden_size,
                                int num_directions, int multiprocessors) {
  constexpr int64_t kStart = 700, kRows = 512, kBusy = 800, kWait = 7000, kMost = 15000;
  if (rows > kRows * kMost / kWait || input_size + hidden_size > 1 << 16) return false;
  const int64_t columns = tiles_of(input_size + hidden_size + 1);
  const int64_t blocks = num_directions * tiles_of(hidden_size) * columns;
  const int64_t share = (blocks + multiprocessors - 1) / multiprocessors;
  const int64_t clocks = share * (kStart + rows * kBusy / kRows) + rows * kWait / kRows;
  return clocks <= kMost * num_directions;
}

cudaError_t launch_weight_grads(const WeightGrads& task, cudaStream_t stream);

}  // namespace fastrnn::cuda
