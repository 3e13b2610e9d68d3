// Calls the operator behind torch.nn.RNN, where that is faster or none of our kernels can run.
#pragma once

#include "ops.h"

namespace fastrnn {

// Whether it can serve a call with these arguments. Not a compiler's input, which has no values.
bool torch_can_serve(const Tensor& input, const OptionalTensor& lengths,
                     const OptionalTensor& reset, const OptionalTensor& dropout_mask);

std::tuple<Tensor, Tensor> rnn_by_torch(FASTRNN_ARGUMENTS);

}  // namespace fastrnn
