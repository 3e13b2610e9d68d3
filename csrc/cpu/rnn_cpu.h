#pragma once

#include "ops.h"

namespace fastrnn::cpu {

// The instruction set whose kernels serve calls on the CPU.
FASTRNN_API const char* kernels_name();

// Whether steps of this size are left to torch's matrix products: they are faster than kernels for
// vectors of four.
FASTRNN_API bool prefers_aten(int64_t batch, int64_t hidden_size);

// The call by torch's own operator, where that is preferred and takes such a call.
std::optional<std::tuple<Tensor, Tensor>> rnn_by_aten(FASTRNN_ARGUMENTS);

}  // namespace fastrnn::cpu
