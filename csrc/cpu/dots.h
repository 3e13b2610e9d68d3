// A product of few rows with a matrix that is not packed but transposed: by dot products.
#pragma once

#include "cpu/product.h"

namespace fastrnn::cpu {
namespace {

// out[r][unit] = the dot products of rows[r] with kUnits rows of the transposed matrices.
template <typename C, typename M, int kRows, int kUnits>
__attribute__((noinline)) void dots(const Product<C>& p, int64_t row, int64_t unit) {
  constexpr int L = kLanes<C>;
  Vec<C> acc[kRows * kUnits] = {};
  for (const auto& term : p.terms) {
    const int64_t depth = term.depth;
    if (depth == 0) continue;
    const C* a[kRows];
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) a[r] = static_cast<const C*>(term.rows[row + r]);
    const M* w = static_cast<const M*>(term.matrix) + unit * depth;
    const auto step = [&](int64_t k, int n) __attribute__((always_inline)) {
      Vec<C> b[kUnits];
      FASTRNN_UNROLL
      for (int u = 0; u < kUnits; ++u) b[u] = load_widened<C>(w + u * depth + k, n);
      FASTRNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Vec<C> x = load_widened<C>(a[r] + k, n);
        FASTRNN_UNROLL
        for (int u = 0; u < kUnits; ++u) acc[r * kUnits + u] += x * b[u];
      }
    };
    int64_t k = 0;
    // One or two rows are bound by reading the matrix: prefetch the next tile's part of it.
    if (kRows <= 2 && term.far) {
      for (; k + L <= depth; k += L) {
        FASTRNN_UNROLL
        for (int u = 0; u < kUnits; ++u) __builtin_prefetch(w + (kUnits + u) * depth + k);
        step(k, L);
      }
    }
    for (; k + L <= depth; k += L) step(k, L);
    if (k < depth) step(k, static_cast<int>(depth - k));
  }
  C sums[(kRows * kUnits + L - 1) / L * L];
  FASTRNN_UNROLL
  for (int i = 0; i < kRows * kUnits; i += L) {
    Vec<C> group[L];
    FASTRNN_UNROLL
    for (int j = 0; j < L; ++j) group[j] = i + j < kRows * kUnits ? acc[i + j] : Vec<C>{};
    store(sums + i, sums_of_lanes<C>(group));
  }
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    std::memcpy(p.out[row + r] + unit, sums + r * kUnits, kUnits * sizeof(C));
  }
}

constexpr int kMaxDotRows = kVectorRegisters >= 32 ? 6 : 3;

template <typename C, typename M, int kUnits, int kRows = kMaxDotRows>
FASTRNN_INLINE void dots_of(int rows, const Product<C>& p, int64_t row, int64_t unit) {
  if (rows == kRows) return dots<C, M, kRows, kUnits>(p, row, unit);
  if constexpr (kRows > 1) dots_of<C, M, kUnits, kRows - 1>(rows, p, row, unit);
}

// As run_panels, for matrices that are not packed but transposed. All rows take a block of units
// before the next: it stays in the nearest cache, and a tile's rows are fetched once for it.
template <typename C, typename M>
void run_dots(const Product<C>& p, int64_t rows, int part, int parts) {
  constexpr int L = kLanes<C>, kUnits = 4;
  const Panels<C> panels(p.columns);
  const int64_t begin = panels.begin(panels.count * part / parts) * L;
  int64_t end = panels.begin(panels.count * (part + 1) / parts) * L;
  if (end > p.columns) end = p.columns;
  const int64_t depth = p.terms[0].depth + p.terms[1].depth;  // 0: a first step from zero
  const int64_t unit_bytes = (depth > 0 ? depth : 1) * int64_t{sizeof(M)};
  const int64_t most = kNearestBytes / unit_bytes / kUnits * kUnits;
  const int64_t size = most > kUnits ? most : kUnits;
  for (int64_t block = begin; block < end; block += size) {
    const int64_t past = end - block < size ? end : block + size;
    int64_t row = 0;
    for (int tiles = ceil_div(static_cast<int>(rows), kMaxDotRows); tiles > 0; --tiles) {
      const int n = ceil_div(static_cast<int>(rows - row), tiles);
      int64_t unit = block;
      for (; unit + kUnits <= past; unit += kUnits) dots_of<C, M, kUnits>(n, p, row, unit);
      for (; unit < past; ++unit) dots_of<C, M, 1>(n, p, row, unit);
      row += n;
    }
  }
  const auto sum_of = [&](int64_t r, int64_t c, int n) __attribute__((always_inline)) {
    const C* start = p.added ? p.added[r] : p.start ? p.start[r] : p.bias;
    const Vec<C> sum = load_widened<C>(p.out[r] + c, n);
    return start ? sum + load_widened<C>(start + c, n) : sum;
  };
  const auto for_vectors = [&](auto finish_vector) __attribute__((always_inline)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; c += L)
        finish_vector(r, c, static_cast<int>(end - c < L ? end - c : L));
    }
  };
  if (p.leak.form != Leak::kNone) {
    with_leak<C>(p.leak.form, p.epilogue, [&](auto f) __attribute__((always_inline)) {
      for_vectors([&](int64_t r, int64_t c, int n) __attribute__((always_inline)) {
        LeakRow<C>(p, r).end(f, c, n, sum_of(r, c, n));
      });
    });
    return;
  }
  with_epilogue<C>(p.epilogue, [&](auto f) __attribute__((always_inline)) {
    for_vectors([&](int64_t r, int64_t c, int n) __attribute__((always_inline)) {
      const Vec<C> h = p.state ? load_widened<C>(p.state[r] + c, n) : Vec<C>{};
      const Vec<C> y = f(sum_of(r, c, n), h);
      n < L ? store_first(p.out[r] + c, y, n) : store(p.out[r] + c, y);
    });
  });
}

}  // namespace
}  // namespace fastrnn::cpu
