// A step of a leaky layer (rnn.h), beside cuBLAS's product. As the plain step, with what leaks.
#pragma once

#include "cuda/step.h"

namespace fastrnn::cuda {

// What both passes take. Index d is the direction's.
struct Leaking {
  Leak form;  // kRate or kCurrent
  double alpha_value;
  const void* alpha[2];  // [H] in the accumulation type, or null: alpha_value
  Sequence kept[2];      // [T, B, H] in the storage type; data null: not wanted
};

// step.state[d] gets the state as the next product takes it, which the current form has activated.
struct LeakyForwardStep {
  ForwardStep step;
  Leaking leak;
  void* leaky_state[2];  // [B, H] contiguous in the accumulation type: the state that leaks, which
                         // the step replaces
};

// The last step, T, closes the walk, as in the plain one.
struct LeakyBackwardStep {
  BackwardStep step;
  Leaking leak;
  const void* hx[2];  // [B, H] in the storage type, activated in the current form; null: zeros
  int64_t hx_row_stride;
  void* carry[2];       // [B, H] contiguous in the accumulation type: what of a state's gradient
                        // leaks back, written by one step for the next
  void* grad_alpha[2];  // [B, H] likewise: sums over the steps so far; null: not wanted
};

cudaError_t launch_leaky_forward_step(const LeakyForwardStep& leaky, cudaStream_t stream);
cudaError_t launch_leaky_backward_step(const LeakyBackwardStep& leaky, cudaStream_t stream);

}  // namespace fastrnn::cuda
