// Groups of 8 or 16 rows on tensor cores, in one block.
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastrnn::cuda {
namespace {

// How many steps before it is used a tensor is read, as registers allow; backward, each step has
// two tensors to read.
template <typename Direction>
constexpr int steps_ahead(const Configuration& c) {
  const int most = std::is_same_v<Direction, ForwardDirection> ? 384 : 256;
  return c.rows == 8 && c.units * c.element_bytes() <= most ? 4 : 2;
}

template <typename Direction>
cudaError_t run_tile(const Recurrence<Direction>& r, const Choice& choice, cudaStream_t stream) {
  return with_configuration<Kernel::kTile>(r, choice, [&]<typename S>(S, auto n) {
    constexpr Configuration kOwn = kConfigurations[n];
    return launch_blocks<TileGroup<S, kOwn>, steps_ahead<Direction>(kOwn)>(r, stream);
  });
}

}  // namespace

cudaError_t launch_tile_forward(const ForwardRecurrence& r, const Choice& choice,
                                cudaStream_t stream) {
  return run_tile(r, choice, stream);
}

cudaError_t launch_tile_backward(const BackwardRecurrence& r, const Choice& choice,
                                 cudaStream_t stream) {
  return run_tile(r, choice, stream);
}

}  // namespace fastrnn::cuda
