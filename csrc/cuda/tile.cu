// Groups of 8 or 16 rows on tensor cores, in one block.
#include "cuda/block.cuh"
#include "cuda/launchers.h"
#include "cuda/tile.cuh"

namespace fastrnn::cuda {
namespace {

template <typename S, int kUnits, int kTiles, int kStacked = 1, typename Direction>
cudaError_t run(const Recurrence<Direction>& r, cudaStream_t stream) {
  // As registers allow; backward, each step has two tensors to read.
  constexpr int kMost = std::is_same_v<Direction, ForwardDirection> ? 384 : 256;
  constexpr int kAhead = kTiles == 1 && kUnits * sizeof(S) <= kMost ? 4 : 2;
  return launch_blocks<TileGroup<S, kUnits, kTiles, kStacked>, kAhead>(r, stream);
}

template <typename S, typename Direction>
cudaError_t run_narrow(const Recurrence<Direction>& r, const Choice& choice, cudaStream_t stream) {
  switch (choice.units + choice.rows) {
    case 64 + 8:
      return run<S, 64, 1>(r, stream);
    case 64 + 16:
      return run<S, 64, 2>(r, stream);
    case 128 + 8:
      return run<S, 128, 1>(r, stream);
    case 128 + 16:
      return run<S, 128, 2>(r, stream);
    case 192 + 8:
      return run<S, 192, 1>(r, stream);
    case 256 + 8:
      return run<S, 256, 1, 2>(r, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename Direction>
cudaError_t run_any(const Recurrence<Direction>& r, const Choice& choice, cudaStream_t stream) {
  if (r.dtype == Dtype::kFloat16) return run_narrow<Half>(r, choice, stream);
  if (r.dtype == Dtype::kBFloat16) return run_narrow<BFloat16>(r, choice, stream);
  if (r.dtype != Dtype::kFloat32 || !r.tf32 || choice.rows != 8) return cudaErrorInvalidValue;
  switch (choice.units) {
    case 64:
      return run<float, 64, 1>(r, stream);
    case 128:
      return run<float, 128, 1>(r, stream);
    case 160:
      return run<float, 160, 1>(r, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch_tile_forward(const ForwardRecurrence& r, const Choice& choice,
                                cudaStream_t stream) {
  return run_any(r, choice, stream);
}

cudaError_t launch_tile_backward(const BackwardRecurrence& r, const Choice& choice,
                                 cudaStream_t stream) {
  return run_any(r, choice, stream);
}

}  // namespace fastrnn::cuda
