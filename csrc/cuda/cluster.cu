// Groups of rows in clusters of 2, 4 or 8 blocks: on tensor cores, and in exact float32.
#include "cuda/block.cuh"
#include "cuda/cluster.cuh"
#include "cuda/launchers.h"
#include "cuda/tile.cuh"
#include "cuda/vector.cuh"

namespace fastrnn::cuda {
namespace {

template <typename Group, typename Direction>
cudaError_t run_cluster(const Recurrence<Direction>& r, const Choice& choice, cudaStream_t stream) {
  if (choice.threads != Group::kThreads || choice.shared_bytes != Group::kSharedBytes)
    return cudaErrorInvalidValue;
  return launch_blocks<Group, 2>(r, stream);
}

constexpr int stored_fragments(int units, int element_bytes, int tiles) {
  const int kept = tiles > 1 ? 26 : 28;  // more would leave too few registers for the rest
  const int fragments = units * element_bytes / 32;
  return fragments > kept ? fragments - kept : 0;
}

template <typename S, int kUnits, int kTiles, int kBlocks>
using Tile = ClusterGroup<
    TileGroup<S, kUnits, kTiles, 1, kBlocks, stored_fragments(kUnits, int{sizeof(S)}, kTiles)>>;

template <int kUnits, int kRows, int kBlocks>
using Vector = ClusterGroup<VectorGroup<kUnits, kRows, 4, kBlocks>>;

constexpr int key(int units, int rows, int blocks) { return (units * 32 + rows) * 32 + blocks; }

template <typename S, typename Direction>
cudaError_t run_narrow_clusters(const Recurrence<Direction>& r, const Choice& choice,
                                cudaStream_t stream) {
  switch (key(choice.units, choice.rows, choice.blocks)) {
    case key(384, 8, 4):
      return run_cluster<Tile<S, 384, 1, 4>>(r, choice, stream);
    case key(384, 16, 4):
      return run_cluster<Tile<S, 384, 2, 4>>(r, choice, stream);
    case key(512, 8, 8):
      return run_cluster<Tile<S, 512, 1, 8>>(r, choice, stream);
    case key(512, 8, 4):
      return run_cluster<Tile<S, 512, 1, 4>>(r, choice, stream);
    case key(512, 16, 4):
      return run_cluster<Tile<S, 512, 2, 4>>(r, choice, stream);
    case key(768, 8, 8):
      return run_cluster<Tile<S, 768, 1, 8>>(r, choice, stream);
    case key(768, 16, 8):
      return run_cluster<Tile<S, 768, 2, 8>>(r, choice, stream);
    case key(1024, 8, 8):
      return run_cluster<Tile<S, 1024, 1, 8>>(r, choice, stream);
    case key(1024, 16, 8):
      return run_cluster<Tile<S, 1024, 2, 8>>(r, choice, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

// TF32
template <typename Direction>
cudaError_t run_tf32_clusters(const Recurrence<Direction>& r, const Choice& choice,
                              cudaStream_t stream) {
  switch (key(choice.units, choice.rows, choice.blocks)) {
    case key(256, 8, 2):
      return run_cluster<Tile<float, 256, 1, 2>>(r, choice, stream);
    case key(384, 8, 4):
      return run_cluster<Tile<float, 384, 1, 4>>(r, choice, stream);
    case key(512, 8, 8):
      return run_cluster<Tile<float, 512, 1, 8>>(r, choice, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename Direction>
cudaError_t run_exact_clusters(const Recurrence<Direction>& r, const Choice& choice,
                               cudaStream_t stream) {
  switch (key(choice.units, choice.rows, choice.blocks)) {
    case key(256, 1, 2):
      return run_cluster<Vector<256, 1, 2>>(r, choice, stream);
    case key(256, 2, 2):
      return run_cluster<Vector<256, 2, 2>>(r, choice, stream);
    case key(256, 4, 2):
      return run_cluster<Vector<256, 4, 2>>(r, choice, stream);
    case key(384, 1, 4):
      return run_cluster<Vector<384, 1, 4>>(r, choice, stream);
    case key(384, 2, 4):
      return run_cluster<Vector<384, 2, 4>>(r, choice, stream);
    case key(384, 4, 4):
      return run_cluster<Vector<384, 4, 4>>(r, choice, stream);
    case key(512, 1, 8):
      return run_cluster<Vector<512, 1, 8>>(r, choice, stream);
    case key(512, 2, 8):
      return run_cluster<Vector<512, 2, 8>>(r, choice, stream);
    case key(512, 4, 8):
      return run_cluster<Vector<512, 4, 8>>(r, choice, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename Direction>
cudaError_t run_any_cluster(const Recurrence<Direction>& r, const Choice& choice,
                            cudaStream_t stream) {
  if (r.dtype == Dtype::kFloat16) return run_narrow_clusters<Half>(r, choice, stream);
  if (r.dtype == Dtype::kBFloat16) return run_narrow_clusters<BFloat16>(r, choice, stream);
  if (r.dtype != Dtype::kFloat32) return cudaErrorInvalidValue;
  if (choice.rows < 8) return run_exact_clusters(r, choice, stream);
  return r.tf32 ? run_tf32_clusters(r, choice, stream) : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_cluster_forward(const ForwardRecurrence& r, const Choice& choice,
                                   cudaStream_t stream) {
  return run_any_cluster(r, choice, stream);
}

cudaError_t launch_cluster_backward(const BackwardRecurrence& r, const Choice& choice,
                                    cudaStream_t stream) {
  return run_any_cluster(r, choice, stream);
}

}  // namespace fastrnn::cuda
