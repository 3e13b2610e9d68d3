// A layer's recurrence step by step: a product by cuBLAS, and a kernel for the rest of the step.
#pragma once

#include "cuda/extended.h"
#include "cuda/layer.h"

namespace fastrnn::cuda {

void forward_by_steps(const Call& call, const Extended& extended, const Layer& layer,
                      const ForwardRecurrence& r, const Tensor& hn);
// grad_hx: undefined: not wanted.
void backward_by_steps(const Call& call, const Extended& extended, const Layer& layer,
                       const BackwardRecurrence& r, const Tensor& grad_hx);

}  // namespace fastrnn::cuda
