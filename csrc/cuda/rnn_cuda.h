#pragma once

#include <string>

#include "ops.h"

namespace fastrnn::cuda {

// Forces a kernel on the calls that follow, of all threads, by a name that choose() takes; empty:
// free choice. Gives the name before, at first what FASTRNN_CUDA_KERNEL was when the library
// loaded.
FASTRNN_API std::string set_kernel(const std::string& name);
// The kernels that a call with an input like this one takes, forward and backward, or "torch".
FASTRNN_API std::string kernels_for(const Tensor& like, int64_t seq_len, int64_t batch,
                                    int64_t hidden_size, bool bidirectional, bool torch_can_serve);

}  // namespace fastrnn::cuda
