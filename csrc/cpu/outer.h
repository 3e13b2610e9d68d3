// The product of the weight gradients: a sum over rows of outer products.
#pragma once

#include "cpu/tile.h"

namespace fastrnn::cpu {
namespace {

// The copy of grad_pre, by chunks of units.
template <typename C>
struct Columns {
  C* data;
  int64_t units, ld;
  Columns(C* memory, int64_t units) : data(memory), units(units), ld(unit_stride(units)) {}

  int64_t chunks() const { return unit_chunks(units); }
  int64_t size(int64_t chunk) const {
    const int64_t left = units - chunk * kUnitChunk;
    return left < kUnitChunk ? left : kUnitChunk;
  }
  C* row(int64_t chunk, int64_t k) const { return data + (chunk * kDepthBlock + k) * ld; }
  // The number of elements that `units` units take.
  static int64_t room(int64_t units) {
    return unit_chunks(units) * kDepthBlock * unit_stride(units);
  }
};

// A tile of the weight gradients: out[r][column] (+)= sum over k of units[k * units_ld + r] *
// panel[k][column]. With kPairs an element of units and of panel is a pair of bfloat16.
template <typename C, bool kPairs, int kRows, int kVectors>
__attribute__((noinline)) void outer_tile(const C* units, int64_t units_ld, const C* panel,
                                          int64_t depth, C* out, int64_t ld, int last, bool add) {
  constexpr int L = kLanes<C>;
  Vec<C> acc[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<C> b[kVectors];
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) b[v] = load(panel + v * L);
    panel += kVectors * L;
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kPairs) {
#if defined(FASTRNN_AVX512_BF16)
          acc[r][v] = add_pair(acc[r][v], b[v], bits_of(units[r]));
#endif
        } else {
          acc[r][v] += b[v] * units[r];
        }
      }
    }
    units += units_ld;
  }
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      C* y = out + r * ld + v * L;
      const int n = v < kVectors - 1 ? L : last;
      const Vec<C> sum = add ? acc[r][v] + load_widened<C>(y, n) : acc[r][v];
      n < L ? store_first(y, sum, n) : store(y, sum);
    }
  }
}

template <typename C, bool kPairs, int kVectors, int kRows = max_rows(kVectors)>
FASTRNN_INLINE void outer_tile_of(int n, const C* units, int64_t units_ld, const C* panel,
                                  int64_t depth, C* out, int64_t ld, int last, bool add) {
  if (n == kRows) {
    return outer_tile<C, kPairs, kRows, kVectors>(units, units_ld, panel, depth, out, ld, last,
                                                  add);
  }
  if constexpr (kRows > 1) {
    outer_tile_of<C, kPairs, kVectors, kRows - 1>(n, units, units_ld, panel, depth, out, ld, last,
                                                  add);
  }
}

// Elements of the rows x in the columns of a panel, one row after the other.
template <typename C>
FASTRNN_INLINE void pack_rows(C* panel, const C* const* x, int64_t depth, int64_t column, int width,
                              int last) {
  constexpr int L = kLanes<C>;
  for (int64_t k = 0; k < depth; ++k) {
    for (int v = 0; v < width; ++v, panel += L) {
      store(panel, load_widened<C>(x[k] + column + v * L, v < width - 1 ? L : last));
    }
  }
}
#if defined(FASTRNN_AVX512_BF16)
// Likewise, two rows at a time, their elements in pairs.
FASTRNN_INLINE void pack_rows(float* panel, const BFloat16* const* x, int64_t depth, int64_t column,
                              int width, int last) {
  constexpr int L = kLanes<float>;
  for (int64_t k = 0; k < depth; k += 2) {
    for (int v = 0; v < width; ++v, panel += L) {
      const int64_t at = column + v * L;
      store(panel, interleave(x[k] + at, k + 1 < depth ? x[k + 1] + at : nullptr,
                              v < width - 1 ? L : last));
    }
  }
}
#endif

// out[unit][column] (+)= sum over k of units[k][unit] * x[k][column]. x is packed into `panel`, as
// many panels of columns at a time as fit, and a tile's units take them in turn: with few k, out is
// written nearly in the order of memory. Where x is of a type with pairs, units are of pairs: half
// as deep as x.
template <typename C, typename X>
void run_outer(const Columns<C>& units, const X* const* x, int64_t columns, int64_t depth, C* panel,
               C* out, bool add) {
  constexpr bool kPairs = kHasPairs<X>;
  constexpr int L = kLanes<C>;
  const Panels<C> panels(columns);
  const int64_t steps = kPairs ? (depth + 1) / 2 : depth;
  const int64_t at_once = steps > 0 ? kDepthBlock / steps : panels.count;
  const auto last_lanes = [&](int64_t i) {
    const int64_t inside = columns - (panels.begin(i) + panels.width(i) - 1) * L;
    return static_cast<int>(inside < L ? inside : L);
  };
  for (int64_t first = 0; first < panels.count; first += at_once) {
    const int64_t end = first + at_once < panels.count ? first + at_once : panels.count;
    const auto packed = [&](int64_t i) {
      return panel + (panels.begin(i) - panels.begin(first)) * L * steps;
    };
    for (int64_t i = first; i < end; ++i) {
      pack_rows(packed(i), x, depth, panels.begin(i) * L, panels.width(i), last_lanes(i));
    }
    C* to = out;
    for (int64_t chunk = 0; chunk < units.chunks(); ++chunk) {
      const C* from = units.row(chunk, 0);
      int left = static_cast<int>(units.size(chunk));
      // The first panel is the widest, whose tiles have the fewest units.
      for (int tiles = ceil_div(left, max_rows(panels.width(first))); tiles > 0; --tiles) {
        const int n = ceil_div(left, tiles);
        for (int64_t i = first; i < end; ++i) {
          C* y = to + panels.begin(i) * L;
          switch (panels.width(i)) {
            case 1:
              outer_tile_of<C, kPairs, 1>(n, from, units.ld, packed(i), steps, y, columns,
                                          last_lanes(i), add);
              break;
            case 2:
              outer_tile_of<C, kPairs, 2>(n, from, units.ld, packed(i), steps, y, columns,
                                          last_lanes(i), add);
              break;
            default:
              if constexpr (kMaxVectors > 2) {
                panels.width(i) == 3
                    ? outer_tile_of<C, kPairs, 3>(n, from, units.ld, packed(i), steps, y, columns,
                                                  last_lanes(i), add)
                    : outer_tile_of<C, kPairs, 4>(n, from, units.ld, packed(i), steps, y, columns,
                                                  last_lanes(i), add);
              }
          }
        }
        from += n;
        to += n * columns;
        left -= n;
      }
    }
  }
}

}  // namespace
}  // namespace fastrnn::cpu
