// Groups of few rows in exact float32, on FMA units.
#pragma once

#include "cuda/configurations.h"
#include "cuda/math.cuh"

namespace fastrnn::cuda {

// A thread has kUnits neighbouring units and every kLanes-th four columns of their rows of w_hh,
// for all rows of the state. The kLanes lanes with the other columns are 32 / kLanes apart;
// shuffles add their sums, and leave each lane with those of kElements units of a row. Neighbouring
// lanes read the same words of the state: a load of 16 bytes takes 2 clocks then, else 4
// (benchmarks/gpu/limits.cu).
template <Configuration kConfiguration>
struct VectorGroup {
  using Storage = float;
  static constexpr Configuration kOwn = kConfiguration;
  static constexpr int kHidden = kOwn.units, kRows = kOwn.rows, kSlots = 1, kBlocks = kOwn.blocks;
  static constexpr int kBlockUnits = kHidden / kBlocks, kWarpUnits = kOwn.warp_units,
                       kThreads = kOwn.threads(), kUnits = kOwn.thread_units, kLanes = kOwn.lanes(),
                       kApart = 32 / kLanes, kFours = kHidden / 4 / kLanes;
  static constexpr int kSums = kRows * kUnits, kElements = kSums > kLanes ? kSums / kLanes : 1;
  static constexpr int kRowBytes = kOwn.row_bytes(), kStateBytes = kOwn.state_bytes(),
                       kBarriersAt = kOwn.barriers_at(), kSharedBytes = kOwn.shared_bytes();
  // Sums of an element that do not wait for one another, where there are few elements.
  static constexpr int kChains = kSums > 2 ? 1 : 2;
  static constexpr bool kInPieces = false;
  static_assert(kThreads <= 1024 && kThreads % 32 == 0 && kElements <= kUnits);
  static_assert(kBlockUnits * kBlocks == kHidden && kBlockUnits % kWarpUnits == 0 &&
                kApart * kUnits == kWarpUnits && kFours * 4 * kLanes == kHidden);

  float4 weights[kUnits][kFours];
  int first;  // of its sums, as first_sum tells
  int place;  // of its first element in the state

  FASTRNN_DEVICE VectorGroup() : first(first_sum()) {
    place = static_cast<int>(unknown(row(0) * kHidden + unit(0)));
  }

  FASTRNN_DEVICE int lane() const { return threadIdx.x % 32; }
  FASTRNN_DEVICE int block_unit() const { return kBlocks > 1 ? cluster_rank() * kBlockUnits : 0; }
  // The warp's first unit, and the thread's.
  FASTRNN_DEVICE int warp_unit() const {
    return block_unit() + static_cast<int>(threadIdx.x) / 32 * kWarpUnits;
  }
  FASTRNN_DEVICE int thread_unit() const { return warp_unit() + lane() % kApart * kUnits; }
  // Sums are [kRows][kUnits]; the first that this thread keeps, as the shuffles leave it; kSums
  // where another lane keeps the same.
  FASTRNN_DEVICE int first_sum() const {
    int first = 0, count = kSums;
#pragma unroll
    for (int mask = kApart; mask < 32; mask *= 2) {
      const bool upper = lane() & mask;
      if (count > 1) {
        count /= 2;
        first += upper ? count : 0;
      } else if (upper) {
        return kSums;
      }
    }
    return first;
  }
  FASTRNN_DEVICE static constexpr int slot(int) { return 0; }
  FASTRNN_DEVICE int row(int) const { return first < kSums ? first / kUnits : -1; }
  FASTRNN_DEVICE static constexpr int offset(int e) { return e; }
  FASTRNN_DEVICE int unit(int e) const { return thread_unit() + first % kUnits + e; }

  FASTRNN_DEVICE void load(const float* w, int64_t H, bool transposed) {
    // From a unit, and from a column, to the next.
    const int64_t across = transposed ? 1 : H, along = transposed ? H : 1;
    const int units = static_cast<int>(H), j = thread_unit(), k = 4 * (lane() / kApart);
    const float* from = w + j * across + k * along;  // runs along with the columns
    // A few at a time, as what is on its way takes registers.
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
#pragma unroll
      for (int n = 0; n < kUnits; ++n) {
        const int left = j + n < units ? units - k - 4 * i * kLanes : 0;
        const float* at = from + n * across;
        const auto element = [&](int c) { return float_of(load_bits(at + c * along, left > c)); };
        weights[n][i] = make_float4(element(0), element(1), element(2), element(3));
      }
      from = further(from, 4 * kLanes * along * int{sizeof(float)});
    }
  }

  template <typename F>
  FASTRNN_DEVICE void product(const unsigned char* state, float (&c)[kElements],
                              const F& meanwhile) const {
    const float4* columns = reinterpret_cast<const float4*>(state) + lane() / kApart;
    float4 first[kFours];  // of row 0
#pragma unroll
    for (int i = 0; i < kFours; ++i) first[i] = load_shared(columns + i * kLanes);
    meanwhile();
    float sums[kSums];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float parts[kUnits][kChains] = {};
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float4 x = r == 0 ? first[i] : load_shared(columns + r * (kHidden / 4) + i * kLanes);
#pragma unroll
        for (int n = 0; n < kUnits; ++n) {
          const float4 w = weights[n][i];
          parts[n][0] = fmaf(w.x, x.x, parts[n][0]);
          parts[n][1 % kChains] = fmaf(w.y, x.y, parts[n][1 % kChains]);
          parts[n][0] = fmaf(w.z, x.z, parts[n][0]);
          parts[n][1 % kChains] = fmaf(w.w, x.w, parts[n][1 % kChains]);
        }
      }
#pragma unroll
      for (int n = 0; n < kUnits; ++n)
        sums[r * kUnits + n] = kChains == 1 ? parts[n][0] : parts[n][0] + parts[n][1 % kChains];
    }
    add_lanes<kSums, kApart>(sums);
#pragma unroll
    for (int e = 0; e < kElements; ++e) c[e] = sums[e];
  }

  // Of two sums, a lane gives one to the lane across, and adds that lane's part to the one that it
  // keeps; of a single sum, both keep the whole.
  template <int kCount, int kMask>
  FASTRNN_DEVICE void add_lanes(float (&sums)[kSums]) const {
    if constexpr (kMask < 32) {
      if constexpr (kCount > 1) {
        constexpr int kHalf = kCount / 2;
        const bool upper = lane() & kMask;
#pragma unroll
        for (int n = 0; n < kHalf; ++n) {
          const float gives = upper ? sums[n] : sums[n + kHalf],
                      keeps = upper ? sums[n + kHalf] : sums[n];
          sums[n] = keeps + shuffle_xor(gives, kMask);
        }
        add_lanes<kHalf, 2 * kMask>(sums);
      } else {
        sums[0] += shuffle_xor(sums[0], kMask);
        add_lanes<1, 2 * kMask>(sums);
      }
    }
  }

  FASTRNN_DEVICE void put(unsigned char* state, int e, float x) const {
    if (first < kSums) store_shared(reinterpret_cast<float*>(state) + place + e, x);
  }

  FASTRNN_DEVICE void send(unsigned char*, int) const {}
  FASTRNN_DEVICE void receive(int, GaveUp*) const { block_sync(); }
  FASTRNN_DEVICE void leave() const {}
  FASTRNN_DEVICE void left() const {}
  // From now on this thread produces only NaN.
  FASTRNN_DEVICE void spoil() {
#pragma unroll
    for (int n = 0; n < kUnits; ++n) weights[n][0].x = float_of(~0u);
  }
};

}  // namespace fastrnn::cuda
