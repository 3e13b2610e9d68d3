// Weight matrices packed into the panels that tile.h reads.
#pragma once

#include "cpu/product.h"

namespace fastrnn::cpu {
namespace {

template <typename C>
bool has_no_nan(Vec<C> zeros_or_nan) {
  C sum = 0;
  FASTRNN_UNROLL
  for (int l = 0; l < kLanes<C>; ++l) sum += zeros_or_nan[l];
  return sum == 0;
}

// dst = panels part, part + parts, ... of the [depth, columns] matrix whose element (k, c) is
//   src[c * ld + k] if kTransposed, else src[k * ld + c].
// Returns whether they are finite if kTransposed, for the product of w_hh with zeros; else true.
template <bool kTransposed, typename S, typename C>
bool pack_panels(C* dst, const S* src, int64_t depth, int64_t columns, int64_t ld, int part,
                 int parts) {
  constexpr int L = kLanes<C>;
  const Panels<C> panels(columns);
  Vec<C> zero = {};  // becomes NaN at an element that is not finite
  for (int64_t i = part; i < panels.count; i += parts) {
    const int vectors = panels.width(i);
    C* to = dst + panels.begin(i) * L * depth;
    const auto inside = [&](int v) {
      const int64_t left = columns - (panels.begin(i) + v) * L;
      return static_cast<int>(left < L ? left : L);
    };
    if constexpr (kTransposed) {
      for (int v = 0; v < vectors; ++v) {
        const S* from = src + (panels.begin(i) + v) * L * ld;
        for (int64_t k = 0; k < depth; k += L) {
          const int steps = static_cast<int>(depth - k < L ? depth - k : L);
          Vec<C> block[L];
          FASTRNN_UNROLL
          for (int c = 0; c < L; ++c) {
            block[c] = c < inside(v) ? load_widened<C>(from + c * ld + k, steps) : Vec<C>{};
            zero += block[c] * 0;
          }
          transpose<C>(block);
          FASTRNN_UNROLL
          for (int step = 0; step < L; ++step) {
            if (step < steps) store(to + ((k + step) * vectors + v) * L, block[step]);
          }
        }
      }
    } else {
      const S* from = src + panels.begin(i) * L;
      for (int64_t k = 0; k < depth; ++k, from += ld) {
        for (int v = 0; v < vectors; ++v, to += L) {
          store(to, load_widened<C>(from + v * L, inside(v)));
        }
      }
    }
  }
  return has_no_nan<C>(zero);
}

#if defined(FASTRNN_AVX512_BF16)
// As pack_panels, in pairs of depth.
template <bool kTransposed>
bool pack_pair_panels(float* dst, const BFloat16* src, int64_t depth, int64_t columns, int64_t ld,
                      int part, int parts) {
  constexpr int L = kLanes<float>;
  const Panels<float> panels(columns);
  const int64_t pairs = (depth + 1) / 2;
  Vec<float> zero = {};
  for (int64_t i = part; i < panels.count; i += parts) {
    const int vectors = panels.width(i);
    for (int v = 0; v < vectors; ++v) {
      const int64_t column = (panels.begin(i) + v) * L;
      const int inside = static_cast<int>(columns - column < L ? columns - column : L);
      float* to = dst + panels.begin(i) * L * pairs + v * L;
      if constexpr (kTransposed) {
        for (int64_t k = 0; k < pairs; k += L) {
          Vec<float> block[L];
          FASTRNN_UNROLL
          for (int c = 0; c < L; ++c) {
            block[c] = c < inside ? load_pairs(src + (column + c) * ld + 2 * k, depth - 2 * k)
                                  : Vec<float>{};
            const Bits<float> pair = (Bits<float>)block[c];
            zero += (Vec<float>)(pair << 16) * 0 + (Vec<float>)(pair & ~0xffff) * 0;
          }
          transpose<float>(block);
          FASTRNN_UNROLL
          for (int step = 0; step < L; ++step) {
            if (k + step < pairs) store(to + (k + step) * vectors * L, block[step]);
          }
        }
      } else {
        for (int64_t k = 0; k < pairs; ++k) {
          const BFloat16* low = src + 2 * k * ld + column;
          store(to + k * vectors * L,
                interleave(low, 2 * k + 1 < depth ? low + ld : nullptr, inside));
        }
      }
    }
  }
  return has_no_nan<float>(zero);
}
#endif

}  // namespace
}  // namespace fastrnn::cpu
