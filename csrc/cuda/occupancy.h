// What the current device's driver says of the kernels: whether it has any, and how many groups run
// at a time.
#pragma once

#include "cuda/choose.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

// An error where the device runs no machine code of this build; else what that was compiled for, by
// the driver's word.
cudaError_t probe_kernels(int* compiled_for);

// Groups of this configuration that run at a time. 0: the device holds none.
int groups_at_once(const Choice& choice, const Device& device);

}  // namespace fastrnn::cuda
