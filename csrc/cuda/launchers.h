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

// A kernel's launcher; null for one that takes its steps one by one.
inline ForwardLauncher* forward_launcher(Kernel kernel) {
  switch (kernel) {
    case Kernel::kVector:
      return launch_vector_forward;
    case Kernel::kTile:
      return launch_tile_forward;
    case Kernel::kCluster:
      return launch_cluster_forward;
    default:
      return nullptr;
  }
}
inline BackwardLauncher* backward_launcher(Kernel kernel) {
  switch (kernel) {
    case Kernel::kVector:
      return launch_vector_backward;
    case Kernel::kTile:
      return launch_tile_backward;
    case Kernel::kCluster:
      return launch_cluster_backward;
    default:
      return nullptr;
  }
}

}  // namespace fastrnn::cuda
