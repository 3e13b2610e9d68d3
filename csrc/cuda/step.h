// Kernels that run once a step, or once over all steps, beside ATen's and cuBLAS's products.
#pragma once

#include "cuda/recurrence.h"

namespace fastrnn::cuda {

// The part of step `step` (0: the first walked) that is not a product: rows 0 .. num_rows-1.
//   product[d]  h_prev @ w_hh^T, as the sum of `parts` [B, H], contiguous in the accumulation type;
//               null: zero
// Writes output and copy, and state[d] [B, H] in the storage type where it is not null: the last
// state of each row so far.
struct ForwardStep {
  ForwardRecurrence recurrence;
  int64_t step;
  int64_t num_rows;
  const void* product[2];
  void* state[2];
  int parts = 1;
};

// The same for step `step` of the walk back (0: the last that the forward pass took); step T closes
// the walk.
//   product[d]  grad_pre of the step walked before @ w_hh, likewise
// Writes grad_pre, and grad_hx[d] [B, H] in the accumulation type where it is not null; the
// recurrence's grad_hx is not used.
struct BackwardStep {
  BackwardRecurrence recurrence;
  int64_t step;
  int64_t num_rows;
  const void* product[2];
  void* grad_hx[2];
  int parts = 1;
};

cudaError_t launch_forward_step(const ForwardStep& step, cudaStream_t stream);
cudaError_t launch_backward_step(const BackwardStep& step, cudaStream_t stream);

// previous[t, b] = the h_prev of each step: h of the step walked before, hx at the first, zero
// where a new sequence begins or the row has no such step.
struct PreviousStates {
  Dtype dtype;
  Rows rows;
  int64_t hidden_size;
  bool reverse;
  Sequence output;
  const void* hx;  // [B, H], or null: zeros
  int64_t hx_row_stride;
  Sequence previous;
};
cudaError_t launch_previous_states(const PreviousStates& task, cudaStream_t stream);

// to = from, and zero beyond a row's length.
struct MaskedCopy {
  Dtype dtype;
  Rows rows;
  int64_t features;
  Sequence from;
  Sequence to;
};
cudaError_t launch_masked_copy(const MaskedCopy& task, cudaStream_t stream);

// Copies lengths [B] and checks on the device that they are between 0 and seq_len. If not, the
// kernel says so and traps: this process can no longer use the device, as after an index out of
// range in torch. The other kernels read the copy, which nobody changes.
// If `order` is not null, it gets the rows by length, longest first, as a stable sort has them: at
// most kMostRanked rows, each compared with all others by one thread, in an estimated 2 us. A sort
// by torch is several launches.
constexpr int64_t kMostRanked = 256;
cudaError_t launch_check_lengths(const int64_t* lengths, int64_t batch, int64_t seq_len,
                                 int64_t* checked, int64_t* order, cudaStream_t stream);

// Brings the lengths of packed rows, longest first, from the host to the device, as arguments of
// kernels: a captured graph could outlive the source of a copy. rows [B + T] are the lengths, and
// behind them start[t] = the rows of all steps before t.
cudaError_t launch_packed_rows(const int64_t* host_lengths, int64_t batch, int64_t seq_len,
                               int64_t* rows, cudaStream_t stream);

}  // namespace fastrnn::cuda
