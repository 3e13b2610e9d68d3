// Groups of 1, 2 or 4 rows in exact float32, on FMA units, in one block.
#include "cuda/block.cuh"
#include "cuda/launchers.h"
#include "cuda/vector.cuh"

namespace fastrnn::cuda {
namespace {

template <typename Direction>
cudaError_t run(const Recurrence<Direction>& r, const Choice& choice, cudaStream_t stream) {
  if (r.dtype != Dtype::kFloat32) return cudaErrorInvalidValue;
  switch (choice.units + choice.rows) {
    case 64 + 1:
      return launch_blocks<VectorGroup<64, 1, 4>, 4>(r, stream);
    case 64 + 2:
      return launch_blocks<VectorGroup<64, 2, 4>, 4>(r, stream);
    case 64 + 4:
      return launch_blocks<VectorGroup<64, 4, 4>, 4>(r, stream);
    case 128 + 1:
      return launch_blocks<VectorGroup<128, 1, 4>, 4>(r, stream);
    case 128 + 2:
      return launch_blocks<VectorGroup<128, 2, 4>, 4>(r, stream);
    case 128 + 4:
      return launch_blocks<VectorGroup<128, 4, 4>, 4>(r, stream);
    case 192 + 1:
      return launch_blocks<VectorGroup<192, 1, 2>, 4>(r, stream);
    case 192 + 2:
      return launch_blocks<VectorGroup<192, 2, 2>, 4>(r, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch_vector_forward(const ForwardRecurrence& r, const Choice& choice,
                                  cudaStream_t stream) {
  return run(r, choice, stream);
}

cudaError_t launch_vector_backward(const BackwardRecurrence& r, const Choice& choice,
                                   cudaStream_t stream) {
  return run(r, choice, stream);
}

}  // namespace fastrnn::cuda
