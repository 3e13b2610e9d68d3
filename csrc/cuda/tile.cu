// Groups of 8 or 16 rows on tensor cores.
#include "cuda/block.cuh"
#include "cuda/launchers.h"

namespace fastrnn::cuda {
namespace {

// A warp has kStacked times 16 units; its rows of w_hh are the stationary operand, one fragment for
// each kDepth columns. The state's rows are the columns of the other operand: 8 for each of kTiles.
// A row of the state is 16 bytes longer than its elements, so that eight rows lie in different
// banks.
template <typename S, int kUnits, int kTiles, int kStacked>
struct TileGroup {
  using Storage = S;
  static constexpr int kHidden = kUnits, kRows = 8 * kTiles, kSlots = 2 * kTiles,
                       kElements = 4 * kTiles * kStacked;
  static constexpr int kThreads = kUnits / 16 / kStacked * 32;
  static constexpr int kDepth = 32 / sizeof(S);  // of an mma
  static constexpr int kRowBytes = kUnits * sizeof(S) + 16, kStateBytes = kRows * kRowBytes;
  static constexpr int kFragments = kUnits / kDepth;
  static_assert(kFragments % 2 == 0);

  uint32_t weights[kStacked][kFragments][4];

  FASTRNN_DEVICE int lane() const { return threadIdx.x % 32; }
  FASTRNN_DEVICE int first_unit(int stacked) const {
    return (threadIdx.x / 32 * kStacked + stacked) * 16 + lane() / 4;
  }
  // Elements are [kStacked][kTiles][4]; two rows of each tile are this thread's.
  FASTRNN_DEVICE static constexpr int slot(int e) { return e / 4 % kTiles * 2 + e % 2; }
  FASTRNN_DEVICE int row(int s) const { return s / 2 * 8 + lane() % 4 * 2 + s % 2; }
  FASTRNN_DEVICE int unit(int e) const { return first_unit(e / 4 / kTiles) + e % 4 / 2 * 8; }

  FASTRNN_DEVICE static uint32_t bits(S x) {
    if constexpr (sizeof(S) == 4) {
      return tf32_of(x);
    } else {
      uint16_t half;
      memcpy(&half, &x, sizeof half);
      return half;
    }
  }

  FASTRNN_DEVICE void load(const S* w, int64_t H, bool transposed) {
    const auto element = [&](int64_t j, int64_t k) {
      return j < H && k < H ? bits(transposed ? w[k * H + j] : w[j * H + k]) : 0u;
    };
    constexpr int kPer = kDepth / 8;  // columns in a register
#pragma unroll
    for (int n = 0; n < kStacked * kFragments * 4; ++n) {
      const int stacked = n / 4 / kFragments, f = n / 4 % kFragments, i = n % 4;
      const int j = first_unit(stacked) + i % 2 * 8;
      const int k = f * kDepth + lane() % 4 * kPer + i / 2 * 4 * kPer;
      weights[stacked][f][i] = element(j, k);
      if constexpr (kPer == 2) weights[stacked][f][i] |= element(j, k + 1) << 16;
    }
  }

  FASTRNN_DEVICE void product(const unsigned char* state, float (&c)[kElements]) const {
    float sums[kStacked][kTiles][4] = {};
#pragma unroll
    for (int f = 0; f < kFragments; f += 2) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        uint32_t columns[4];  // of two fragments
        load_matrices(columns, state + (n * 8 + lane() % 8) * kRowBytes + f * 32 + lane() / 8 * 16);
#pragma unroll
        for (int s = 0; s < kStacked; ++s) {
          mma<S>(sums[s][n], weights[s][f], {columns[0], columns[1]});
          mma<S>(sums[s][n], weights[s][f + 1], {columns[2], columns[3]});
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) c[e] = sums[e / 4 / kTiles][e / 4 % kTiles][e % 4];
  }

  FASTRNN_DEVICE void put(unsigned char* state, int e, float x) const {
    unsigned char* to = state + row(slot(e)) * kRowBytes + unit(e) * static_cast<int>(sizeof(S));
    if constexpr (sizeof(S) == 4) {
      *reinterpret_cast<uint32_t*>(to) = tf32_of(x);
    } else {
      narrow(reinterpret_cast<S*>(to), x);
    }
  }
};

template <typename S, int kUnits, int kTiles, int kStacked = 1, typename Direction>
cudaError_t run(const Recurrence<Direction>& r, cudaStream_t stream) {
  constexpr int kAhead = kTiles == 1 && kUnits * sizeof(S) < 512 ? 4 : 2;  // as registers allow
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
