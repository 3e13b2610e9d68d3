// Groups of few rows in exact float32, on FMA units, in one block.
#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

namespace fastrnn::cuda {
namespace {

template <typename Direction>
cudaError_t run_vector(const Recurrence<Direction>& r, const Choice& choice, cudaStream_t stream) {
  return with_configuration<Kernel::kVector>(r, choice, [&](float, auto n) {
    return launch_blocks<VectorGroup<kConfigurations[n]>, 4>(r, stream);
  });
}

}  // namespace

cudaError_t launch_vector_forward(const ForwardRecurrence& r, const Choice& choice,
                                  cudaStream_t stream) {
  return run_vector(r, choice, stream);
}

cudaError_t launch_vector_backward(const BackwardRecurrence& r, const Choice& choice,
                                   cudaStream_t stream) {
  return run_vector(r, choice, stream);
}

}  // namespace fastrnn::cuda
