#pragma once

#include "ops.h"

namespace fastrnn::cpu {

// The instruction set whose kernels serve calls on the CPU.
FASTRNN_API const char* kernels_name();

// Whether steps of this size are left to torch's own operator: its matrix products are faster than
// kernels for vectors of four.
FASTRNN_API bool prefers_torch(int64_t batch, int64_t hidden_size);

}  // namespace fastrnn::cpu
