// The product of the weight gradients: a sum over rows of outer products.
#pragma once

#include "cpu/product.h"

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

// A tile of the weight gradients:
//   out[r][column] (+)= sum over k of units[k * units_ld + r] * panel[k][column].
template <typename C>
struct Outer {
  const C* units;
  int64_t units_ld;
  const C* panel;
  int64_t depth;
  C* out;
  int64_t out_ld;
  int last;  // lanes of the last vector that are inside
  bool add;  // to what out holds
};

// With kPairs an element of units and of panel is a pair of bfloat16.
template <typename C, bool kPairs, int kRows, int kVectors>
__attribute__((noinline)) void outer_tile(Outer<C> tile) {
  constexpr int L = kLanes<C>;
  const C *units = tile.units, *panel = tile.panel;
  Vec<C> acc[kRows][kVectors] = {};
  for (int64_t k = 0; k < tile.depth; ++k) {
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
    units += tile.units_ld;
  }
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      C* y = tile.out + r * tile.out_ld + v * L;
      const int n = v < kVectors - 1 ? L : tile.last;
      const Vec<C> sum = tile.add ? acc[r][v] + load_widened<C>(y, n) : acc[r][v];
      n < L ? store_first(y, sum, n) : store(y, sum);
    }
  }
}

template <typename C, bool kPairs, int kVectors, int kRows = max_rows(kVectors)>
FASTRNN_INLINE void outer_tile_of(int rows, const Outer<C>& tile) {
  if (rows == kRows) return outer_tile<C, kPairs, kRows, kVectors>(tile);
  if constexpr (kRows > 1) outer_tile_of<C, kPairs, kVectors, kRows - 1>(rows, tile);
}

// Of `width` vectors.
template <typename C, bool kPairs>
FASTRNN_INLINE void run_outer_tile(int rows, int width, const Outer<C>& tile) {
  switch (width) {
    case 1:
      return outer_tile_of<C, kPairs, 1>(rows, tile);
    case 2:
      return outer_tile_of<C, kPairs, 2>(rows, tile);
    default:
      if constexpr (kMaxVectors > 2) {
        width == 3 ? outer_tile_of<C, kPairs, 3>(rows, tile)
                   : outer_tile_of<C, kPairs, 4>(rows, tile);
      }
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
// written nearly in the order of memory. If x has a type with pairs, units are pairs too, half as
// deep as x.
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
          run_outer_tile<C, kPairs>(n, panels.width(i),
                                    {.units = from,
                                     .units_ld = units.ld,
                                     .panel = packed(i),
                                     .depth = steps,
                                     .out = to + panels.begin(i) * L,
                                     .out_ld = columns,
                                     .last = last_lanes(i),
                                     .add = add});
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
