// What the kernels of this build are.
#pragma once

#include "rnn.h"

namespace fastrnn::cuda {

// The architectures of their machine code, such as "sm_80 sm_90a"; empty: not known.
FASTRNN_API const char* architectures();
// Names their sources: what proven.h lists.
FASTRNN_API const char* kernels_hash();

}  // namespace fastrnn::cuda
