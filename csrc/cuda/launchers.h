// The kernels that run a whole recurrence in one launch. Each takes its own configurations of
// configurations.h, and returns cudaErrorInvalidValue for any other.
#pragma once

#include "cuda/choose.h"
#include "cuda/recurrence.h"

namespace fastrnn::cuda {

using ForwardLauncher = cudaError_t(const ForwardRecurrence&, const Choice&, cudaStream_t);
using BackwardLauncher = cudaError_t(const BackwardRecurrence&, const Choice&, cudaStream_t);

ForwardLauncher launch_vector_forward, launch_tile_forward, launch_cluster_forward;
BackwardLauncher launch_vector_backward, launch_tile_backward, launch_cluster_backward;

}  // namespace fastrnn::cuda
