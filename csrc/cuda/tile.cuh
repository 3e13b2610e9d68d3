// Groups of 8 or 16 rows on tensor cores.
#pragma once

#include "cuda/configurations.h"
#include "cuda/math.cuh"

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

  FASTRNN_DEVICE void multiply(float (&sum)[4], int stacked, int f,
                               const uint32_t (&columns)[2]) const {
    if (f < kKept) {
      mma<S>(sum, weights[stacked][f < kKept ? f : 0], columns);
    } else {
      const uint4 x = *stored(f);
      mma<S>(sum, {x.x, x.y, x.z, x.w}, columns);
    }
  }

  template <typename F>
  FASTRNN_DEVICE void product(const unsigned char* state, float (&c)[kElements],
                              const F& meanwhile) const {
    constexpr int kPairs = kFragments / 2, kFirst = kPairs < 4 ? kPairs : 4 / kTiles;
    const unsigned char* from = state + lane() % 8 * kRowBytes + lane() / 8 * 16;
    const auto load = [&](uint32_t (&columns)[4], int pair, int n) {  // of two fragments
      load_matrices(columns, from + n * 8 * kRowBytes + pair * 64);
    };
    uint32_t first[kFirst][kTiles][4];
#pragma unroll
    for (int i = 0; i < kFirst * kTiles; ++i)
      load(first[i / kTiles][i % kTiles], i / kTiles, i % kTiles);
    meanwhile();
    float sums[kChains][kStacked][kTiles][4] = {};
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int f = 2 * pair;
        uint32_t columns[4];
        if (pair < kFirst) {
#pragma unroll
          for (int i = 0; i < 4; ++i) columns[i] = first[pair < kFirst ? pair : 0][n][i];
        } else {
          load(columns, pair, n);
        }
#pragma unroll
        for (int s = 0; s < kStacked; ++s) {
          multiply(sums[f % kChains][s][n], s, f, {columns[0], columns[1]});
          multiply(sums[(f + 1) % kChains][s][n], s, f + 1, {columns[2], columns[3]});
        }
      }
    }
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
      *reinterpret_cast<uint32_t*>(to) = tf32_of(x);
    } else {
      *reinterpret_cast<S*>(to) = x;
    }
  }

  FASTRNN_DEVICE void send(unsigned char*, int) const {}
  FASTRNN_DEVICE void receive(int, GaveUp*) const { block_sync(); }
  FASTRNN_DEVICE void leave() const {}
  FASTRNN_DEVICE void left() const {}
  // All that this thread gives from now on is NaN.
  FASTRNN_DEVICE void spoil() {
#pragma unroll
    for (int s = 0; s < kStacked; ++s) weights[s][0][0] = weights[s][0][1] = ~0u;
  }
};

}  // namespace fastrnn::cuda
