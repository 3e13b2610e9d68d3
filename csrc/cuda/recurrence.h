// The contract between the operators on CUDA and their kernels: the loop over the steps of one
// layer, for one direction or for both in one launch. The maths is in rnn.h. Every pointer is to
// device memory; every stride counts elements; features are contiguous.
#pragma once

#include "cuda/runtime.h"
#include "rnn.h"

namespace fastrnn::cuda {

// Which rows there are at each step: row b is at steps 0 .. length(b)-1. Element (t, b) of a
// sequence tensor lies at
//   data + start(t) + t * step_stride + b * row_stride
//   start(t) = start ? start[t] * row_stride : 0
// (packed data have start and step_stride = 0, and stand longest first). Rows may be dealt to
// blocks in any order; `order` lists them by length, longest first.
struct Rows {
  int64_t seq_len;
  int64_t batch;
  const int64_t* lengths;  // [B], or null: every row has every step. Between 0 and seq_len
  const int64_t* start;    // [T], or null: padded
  const int64_t* order;    // [B], or null: as they come
  const bool* reset;  // [T, B], true where a new sequence begins: h[t-1] is zero; null: nowhere.
                      // At the first step, hx decides
  int64_t reset_step_stride;
  int64_t reset_row_stride;
};

// Where a wait for another block gave up, in memory that the host sees too; zeros: none did.
struct alignas(16) GaveUp {
  uint32_t yes, block, thread, exchange;
};

// Padded positions beyond a row's length get output = 0 and grad_pre = 0; packed data have none.
// Kernels that take all steps in one launch expect igates and copy, and grad_pre, to have the
// strides of output.
struct ForwardDirection {
  bool reverse;
  const void* w_hh;  // [H, H] contiguous
  const void* b_ih;  // [H], or null: none
  const void* b_hh;  // [H], or null: none
  const void* hx;    // [B, H], or null: zeros
  int64_t hx_row_stride;
  Sequence igates;  // [T, B, H] without the biases. May be the memory of output: an element is read
                    // before the same thread writes it
  Sequence output;  // [T, B, H]
  Sequence copy;    // a second output; data null: not wanted
  void* hn;         // [B, H] contiguous
};

struct BackwardDirection {
  bool reverse;
  const void* w_hh;      // [H, H] contiguous
  Sequence output;       // [T, B, H], of the forward pass
  Sequence grad_output;  // [T, B, H]; data null: zeros
  const void* grad_hn;   // [B, H] contiguous, or null: zeros
  Sequence grad_pre;     // [T, B, H], in the storage type. May be the memory of grad_output, as
                         // above
  void* grad_hx;         // [B, H] contiguous, or null: not wanted
};

template <typename Direction>
struct Recurrence {
  Dtype dtype;
  Nonlinearity nonlinearity;
  bool tf32;  // whether float32 products may round their factors to TF32
  int64_t hidden_size;
  Rows rows;
  int num_directions;
  Direction direction[2];
  GaveUp* gave_up;  // null: not reported. What was still to be computed is NaN then
};

using ForwardRecurrence = Recurrence<ForwardDirection>;
using BackwardRecurrence = Recurrence<BackwardDirection>;

}  // namespace fastrnn::cuda
