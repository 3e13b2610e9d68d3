// Groups of 8 or 16 rows on tensor cores.
#pragma once

#include "cuda/configurations.h"
#include "cuda/math.cuh"
#include "cuda/mma.cuh"

namespace fastrnn::cuda {

// A warp has kStacked times 16 units; its rows of w_hh are the stationary operand, one fragment for
// each kDepth columns. The state's rows are the columns of the other operand: 8 for each of kTiles.
// Where registers do not hold all fragments, the last kStored are in shared memory, each thread's
// part of them where no other thread reads it.
template <typename S, Configuration kConfiguration>
struct TileGroup {
  using Storage = S;
  static constexpr Configuration kOwn = kConfiguration;
  // Whether the state is what is stored, so that it can be moved 16 bytes at a time.
  static constexpr bool kInPieces = sizeof(S) == 2;
  static constexpr int kHidden = kConfiguration.units, kRows = kConfiguration.rows,
                       kBlocks = kConfiguration.blocks;
  static constexpr int kBlockUnits = kHidden / kBlocks, kWarpUnits = kConfiguration.warp_units,
                       kThreads = kConfiguration.threads();
  static constexpr int kTiles = kRows / 8, kStacked = kWarpUnits / 16, kSlots = 2 * kTiles,
                       kElements = 4 * kTiles * kStacked;
  static constexpr int kDepth = 32 / sizeof(S);  // of an mma
  static constexpr int kFragments = kHidden / kDepth, kStored = kConfiguration.stored_fragments(),
                       kKept = kFragments - kStored;
  static constexpr int kRowBytes = kConfiguration.row_bytes(),
                       kStateBytes = kConfiguration.state_bytes(),
                       kBarriersAt = kConfiguration.barriers_at(),
                       kSharedBytes = kConfiguration.shared_bytes();
  static constexpr int kBatch = kTiles > 1 ? 2 : 4;  // fragments that are loaded at a time
  // Sums of an element that do not wait for one another, as registers allow.
  static constexpr bool kFew = kFragments < 8 || (kBlocks == 1 && kFragments > 16);
  static constexpr int kChains = kTiles > 1 ? 1 : kStacked > 1 || kFew ? 2 : 4;
  static_assert(kFragments % 2 == 0 && kKept > 0 && kKept % kBatch == 0 &&
                (kStored == 0 || kStacked == 1));
  static_assert(sizeof(S) == kConfiguration.element_bytes() && kTiles * 8 == kRows &&
                kStacked * 16 == kWarpUnits);
  static_assert(kBlockUnits * kBlocks == kHidden && kBlockUnits % kWarpUnits == 0);

  uint32_t weights[kStacked][kKept][4];

  FASTRNN_DEVICE int lane() const { return threadIdx.x % 32; }
  // The warp's first unit.
  FASTRNN_DEVICE int warp_unit() const {
    const int block = kBlocks > 1 ? cluster_rank() : 0;
    return block * kBlockUnits + static_cast<int>(threadIdx.x) / 32 * kWarpUnits;
  }
  FASTRNN_DEVICE int first_unit(int stacked) const {
    return warp_unit() + stacked * 16 + lane() / 4;
  }
  // Elements are [kStacked][kTiles][4]; two rows of each tile are this thread's.
  FASTRNN_DEVICE static constexpr int slot(int e) { return e / 4 % kTiles * 2 + e % 2; }
  FASTRNN_DEVICE int row(int s) const { return s / 2 * 8 + lane() % 4 * 2 + s % 2; }
  FASTRNN_DEVICE static constexpr int offset(int e) { return e / 4 / kTiles * 16 + e % 4 / 2 * 8; }
  FASTRNN_DEVICE int unit(int e) const { return first_unit(0) + offset(e); }

  FASTRNN_DEVICE void load(const S* w, int64_t H, bool transposed) {
    constexpr int kPer = kDepth / 8;  // columns in a register
    // From a row, and from a column, to the next.
    const int64_t across = transposed ? 1 : H, along = transposed ? H : 1;
    const int units = static_cast<int>(H), k = lane() % 4 * kPer;
#pragma unroll
    for (int stacked = 0; stacked < kStacked; ++stacked) {
      const int j = first_unit(stacked);
      const S* from = w + j * across + k * along;  // runs along with the fragments
      const auto part = [&](int f, int i) {
        const int row = i % 2 * 8, column = i / 2 * 4 * kPer;
        const S* at = from + row * across + column * along;
        const int left = j + row < units ? units - k - column - f * kDepth : 0;
        const uint32_t x = load_bits(at, left > 0);
        if constexpr (kPer == 1) return tf32_of(float_of(x));
        return x | load_bits(at + along, left > 1) << 16;
      };
      const auto next = [&] { from = further(from, kDepth * along * int{sizeof(S)}); };
      // A few at a time, as what is on its way takes registers.
#pragma unroll
      for (int f = 0; f < kKept; f += kBatch) {
#pragma unroll
        for (int i = 0; i < 4 * kBatch; ++i) weights[stacked][f + i / 4][i % 4] = 0;
        if (f * kDepth >= units) continue;
#pragma unroll
        for (int n = f; n < f + kBatch; ++n, next())
#pragma unroll
          for (int i = 0; i < 4; ++i) weights[stacked][n][i] = part(n, i);
      }
#pragma unroll 4
      for (int f = kKept; f < kFragments; ++f, next())
        *stored(f) = make_uint4(part(f, 0), part(f, 1), part(f, 2), part(f, 3));
    }
  }

  FASTRNN_DEVICE static uint4* stored(int f) {
    uint4* all = reinterpret_cast<uint4*>(shared_memory<unsigned char>() + 2 * kStateBytes);
    return all + (f - kKept) * kThreads + threadIdx.x;
  }

  // Of one fragment with all of its tiles' columns.
  template <int kFragment>
  FASTRNN_DEVICE void multiply(float (&sums)[kChains][kStacked][kTiles][4],
                               const uint32_t (&columns)[kTiles][4]) const {
    constexpr int kHalf = kFragment % 2 * 2;  // of what a load of columns brings
#pragma unroll
    for (int s = 0; s < kStacked; ++s) {
      uint32_t w[4];
      if constexpr (kFragment < kKept) {
#pragma unroll
        for (int i = 0; i < 4; ++i) w[i] = weights[s][kFragment][i];
      } else {
        const uint4 x = load_shared(stored(kFragment));
        w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w;
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
        mma<S>(sums[kFragment % kChains][s][n], w, {columns[n][kHalf], columns[n][kHalf + 1]});
    }
  }

  // The columns of kDeep pairs of fragments are asked for before they are needed; half-way, when
  // the tensor cores are busy, comes what else there is to do.
  template <int kPair = 0, typename F, int kDeep>
  FASTRNN_DEVICE void multiply_pairs(float (&sums)[kChains][kStacked][kTiles][4],
                                     uint32_t (&columns)[kDeep][kTiles][4],
                                     const unsigned char* from, const F& meanwhile) const {
    if constexpr (kPair < kFragments / 2) {
      multiply<2 * kPair>(sums, columns[kPair % kDeep]);
      multiply<2 * kPair + 1>(sums, columns[kPair % kDeep]);
      if constexpr (kPair + kDeep < kFragments / 2)
        load(columns[kPair % kDeep], from, kPair + kDeep);
      if constexpr (kPair == (kFragments / 2 - 1) / 2) meanwhile();
      multiply_pairs<kPair + 1>(sums, columns, from, meanwhile);
    }
  }
  FASTRNN_DEVICE void load(uint32_t (&columns)[kTiles][4], const unsigned char* from,
                           int pair) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      load_matrices(columns[n], from + n * 8 * kRowBytes + pair * 64);
  }

  template <typename F>
  FASTRNN_DEVICE void product(const unsigned char* state, float (&c)[kElements],
                              const F& meanwhile) const {
    constexpr int kDeep = kFragments / 2 < 4 ? kFragments / 2 : 4 / kTiles;
    const unsigned char* from = state + lane() % 8 * kRowBytes + lane() / 8 * 16;
    uint32_t columns[kDeep][kTiles][4];
#pragma unroll
    for (int pair = 0; pair < kDeep; ++pair) load(columns[pair], from, pair);
    float sums[kChains][kStacked][kTiles][4] = {};
    multiply_pairs(sums, columns, from, meanwhile);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      c[e] = sums[0][e / 4 / kTiles][e / 4 % kTiles][e % 4];
#pragma unroll
      for (int n = 1; n < kChains; ++n) c[e] += sums[n][e / 4 / kTiles][e / 4 % kTiles][e % 4];
    }
  }

  FASTRNN_DEVICE void put(unsigned char* state, int e, S x) const {
    unsigned char* to = state + row(slot(e)) * kRowBytes + unit(e) * static_cast<int>(sizeof(S));
    if constexpr (sizeof(S) == 4) {
      store_shared(reinterpret_cast<uint32_t*>(to), tf32_of(x));
    } else {
      store_shared(reinterpret_cast<S*>(to), x);
    }
  }

  FASTRNN_DEVICE void send(unsigned char*, int) const {}
  FASTRNN_DEVICE void receive(int, GaveUp*) const { block_sync(); }
  FASTRNN_DEVICE void leave() const {}
  FASTRNN_DEVICE void left() const {}
  // From now on this thread produces only NaN.
  FASTRNN_DEVICE void spoil() {
#pragma unroll
    for (int s = 0; s < kStacked; ++s) weights[s][0][0] = weights[s][0][1] = ~0u;
  }
};

}  // namespace fastrnn::cuda
