// Groups of rows in clusters of 2, 4 or 8 blocks: on tensor cores, and in exact float32.
#include "cuda/cluster.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"
#include "cuda/vector.cuh"

namespace fastrnn::cuda {
namespace {

template <typename Direction>
cudaError_t run_cluster(const Recurrence<Direction>& r, const Choice& choice, cudaStream_t stream) {
  return with_configuration<Kernel::kCluster>(r, choice, [&]<typename S>(S, auto n) {
    constexpr Configuration kOwn = kConfigurations[n];
    if constexpr (kOwn.on_tensor_cores()) {
      return launch_blocks<ClusterGroup<TileGroup<S, kOwn>>, 2>(r, stream);
    } else {
      return launch_blocks<ClusterGroup<VectorGroup<kOwn>>, 2>(r, stream);
    }
  });
}

}  // namespace

cudaError_t launch_cluster_forward(const ForwardRecurrence& r, const Choice& choice,
                                   cudaStream_t stream) {
  return run_cluster(r, choice, stream);
}

cudaError_t launch_cluster_backward(const BackwardRecurrence& r, const Choice& choice,
                                    cudaStream_t stream) {
  return run_cluster(r, choice, stream);
}

}  // namespace fastrnn::cuda
