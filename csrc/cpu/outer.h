// The product of the weight gradients: a sum over rows of outer products.
#pragma once

#include "cpu/tile.h"

namespace fastrnn::cpu {
namespace {

// A tile of the weight gradients: out[r][column] (+)= sum over k of rows[k][unit + r] *
// panel[k][column]. With kPairs an element of rows and of panel is a pair of bfloat16.
template <typename C, bool kPairs, int kRows, int kVectors>
__attribute__((noinline)) void outer_tile(const C* const* rows, int64_t unit, const C* panel,
                                          int64_t depth, C* out, int64_t ld, int last, bool add) {
  constexpr int L = kLanes<C>;
  Vec<C> acc[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const C* a = rows[k] + unit;
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
          acc[r][v] = add_pair(acc[r][v], b[v], bits_of(a[r]));
#endif
        } else {
          acc[r][v] += b[v] * a[r];
        }
      }
    }
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
FASTRNN_INLINE void outer_tile_of(int n, const C* const* rows, int64_t unit, const C* panel,
                                  int64_t depth, C* out, int64_t ld, int last, bool add) {
  if (n == kRows)
    return outer_tile<C, kPairs, kRows, kVectors>(rows, unit, panel, depth, out, ld, last, add);
  if constexpr (kRows > 1) {
    outer_tile_of<C, kPairs, kVectors, kRows - 1>(n, rows, unit, panel, depth, out, ld, last, add);
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

constexpr int64_t kFewRows = 8;

// As run_outer, for the sum of a few rows, which is bound by what it writes: a row of out at a
// time, from end to end.
template <typename C>
void run_outer_few(const C* const* rows, int64_t begin, int64_t end, const C* const* x,
                   int64_t columns, int64_t depth, C* out, int64_t ld, bool add) {
  constexpr int L = kLanes<C>;
  for (int64_t unit = begin; unit < end; ++unit, out += ld) {
    for (int64_t c = 0; c < columns; c += L) {
      const int n = static_cast<int>(columns - c < L ? columns - c : L);
      Vec<C> sum = add ? load_widened<C>(out + c, n) : Vec<C>{};
      for (int64_t k = 0; k < depth; ++k) sum += load_widened<C>(x[k] + c, n) * rows[k][unit];
      n < L ? store_first(out + c, sum, n) : store(out + c, sum);
    }
  }
}

// out[unit - begin][column] (+)= sum over k of rows[k][unit] * x[k][column], for units begin ..
// end-1. x is packed, a panel of columns at a time, into `panel`. Where x is of bfloat16, rows are
// of pairs: half as many as x has.
template <typename C, typename X>
void run_outer(const C* const* rows, int64_t begin, int64_t end, const X* const* x, int64_t columns,
               int64_t depth, C* panel, C* out, int64_t ld, bool add) {
  constexpr bool kPairs = sizeof(X) < sizeof(C);
  constexpr int L = kLanes<C>;
  if constexpr (!kPairs) {
    if (depth <= kFewRows) return run_outer_few(rows, begin, end, x, columns, depth, out, ld, add);
  }
  const Panels<C> panels(columns);
  const int64_t steps = kPairs ? (depth + 1) / 2 : depth;
  for (int64_t i = 0; i < panels.count; ++i) {
    const int64_t column = panels.begin(i) * L;
    const int width = panels.width(i);
    const int64_t inside = columns - column - (width - 1) * L;
    const int last = static_cast<int>(inside < L ? inside : L);
    pack_rows(panel, x, depth, column, width, last);
    const int tiles = ceil_div(static_cast<int>(end - begin), max_rows(width));
    int64_t unit = begin;
    for (int j = tiles; j > 0; --j) {
      const int n = ceil_div(static_cast<int>(end - unit), j);
      C* to = out + (unit - begin) * ld + column;
      switch (width) {
        case 1:
          outer_tile_of<C, kPairs, 1>(n, rows, unit, panel, steps, to, ld, last, add);
          break;
        case 2:
          outer_tile_of<C, kPairs, 2>(n, rows, unit, panel, steps, to, ld, last, add);
          break;
        default:
          if constexpr (kMaxVectors > 2) {
            width == 3
                ? outer_tile_of<C, kPairs, 3>(n, rows, unit, panel, steps, to, ld, last, add)
                : outer_tile_of<C, kPairs, 4>(n, rows, unit, panel, steps, to, ld, last, add);
          }
      }
      unit += n;
    }
  }
}

}  // namespace
}  // namespace fastrnn::cpu
