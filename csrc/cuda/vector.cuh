// Groups of few rows in exact float32, on FMA units.
#pragma once

#include "cuda/configurations.h"
#include "cuda/math.cuh"

namespace fastrnn::cuda {

// kLanes neighbouring lanes have a unit together. A lane takes every kLanes-th four columns of its
// row of w_hh, for all rows of the state; shuffles add the lanes' sums; lane s keeps that of row s.
// Lanes of different units read the same words of the state, which is one access.
template <Configuration kConfiguration>
struct VectorGroup {
  using Storage = float;
  static constexpr int kHidden = kConfiguration.units, kRows = kConfiguration.rows, kSlots = 1,
                       kElements = 1, kBlocks = kConfiguration.blocks;
  static constexpr int kBlockUnits = kHidden / kBlocks, kWarpUnits = kConfiguration.warp_units,
                       kThreads = kConfiguration.threads(), kLanes = 32 / kWarpUnits,
                       kFours = kHidden / 4 / kLanes;
  static constexpr int kRowBytes = kConfiguration.row_bytes(),
                       kStateBytes = kConfiguration.state_bytes(),
                       kBarriersAt = kConfiguration.barriers_at(),
                       kSharedBytes = kConfiguration.shared_bytes();
  static_assert(kRows <= kLanes && kThreads <= 1024 && kThreads % 32 == 0);
  static_assert(kBlockUnits * kBlocks == kHidden && kBlockUnits % kWarpUnits == 0 &&
                kFours * 4 * kLanes == kHidden);

  float4 weights[kFours];

  FASTRNN_DEVICE int lane() const { return threadIdx.x % kLanes; }
  FASTRNN_DEVICE int block_unit() const { return kBlocks > 1 ? cluster_rank() * kBlockUnits : 0; }
  // The warp's first unit.
  FASTRNN_DEVICE int warp_unit() const {
    return block_unit() + static_cast<int>(threadIdx.x) / 32 * kWarpUnits;
  }
  FASTRNN_DEVICE static constexpr int slot(int) { return 0; }
  FASTRNN_DEVICE int row(int) const { return lane() < kRows ? lane() : -1; }
  FASTRNN_DEVICE static constexpr int offset(int) { return 0; }
  FASTRNN_DEVICE int unit(int) const {
    return block_unit() + static_cast<int>(threadIdx.x) / kLanes;
  }
  FASTRNN_DEVICE void load(const float* w, int64_t H, bool transposed) {
    const int64_t j = unit(0);
    const auto element = [&](int64_t k) {
      return j < H && k < H ? (transposed ? w[k * H + j] : w[j * H + k]) : 0.0f;
    };
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int k = 4 * (i * kLanes + lane());
      weights[i] = make_float4(element(k), element(k + 1), element(k + 2), element(k + 3));
    }
  }

  FASTRNN_DEVICE void product(const unsigned char* state, float (&c)[kElements]) const {
    const float4* columns = reinterpret_cast<const float4*>(state);
    c[0] = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float4 x = columns[r * (kHidden / 4) + i * kLanes + lane()];
        sum.x = fmaf(weights[i].x, x.x, sum.x);
        sum.y = fmaf(weights[i].y, x.y, sum.y);
        sum.z = fmaf(weights[i].z, x.z, sum.z);
        sum.w = fmaf(weights[i].w, x.w, sum.w);
      }
      float all = (sum.x + sum.y) + (sum.z + sum.w);
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2) all += shuffle_xor(all, step);
      if (lane() == r) c[0] = all;
    }
  }

  FASTRNN_DEVICE void put(unsigned char* state, int e, float x) const {
    if (lane() < kRows) reinterpret_cast<float*>(state)[lane() * kHidden + unit(e)] = x;
  }

  FASTRNN_DEVICE void send(unsigned char*, int) const {}
  FASTRNN_DEVICE void receive(int, GaveUp*) const { block_sync(); }
  FASTRNN_DEVICE void leave() const {}
  FASTRNN_DEVICE void left() const {}
  // All that this thread gives from now on is NaN.
  FASTRNN_DEVICE void spoil() { weights[0].x = float_of(~0u); }
};

}  // namespace fastrnn::cuda
