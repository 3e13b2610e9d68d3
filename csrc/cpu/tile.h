// The microkernel: a tile of a matrix product in registers, started from a bias or from rows, and
// ended by more rows and an activation.
#pragma once

#include "cpu/product.h"

namespace fastrnn::cpu {
namespace {

constexpr int kMaxNaturalRows = 6;  // of a tile on a matrix that is not packed

// The sums of a tile.
template <typename C, int kRows, int kVectors>
using Sums = Vec<C>[kRows][kVectors];

// A matrix as a tile reads it: a row of kVectors vectors at each k.
template <typename M>
struct Panel {
  const M* data;
  int64_t ld;    // from a row to the next
  int64_t next;  // to the panel of the vectors from kMaxVectors on
  int last;      // lanes of the last vector that are inside the matrix, if not kWhole
};

// sums += rows @ panel, over k from the last to the first if `back` and split.
// `far`: as in Product::Term.
template <typename C, bool kWhole, int kSplit, typename M, int kRows, int kVectors>
FASTRNN_INLINE void multiply(Sums<C, kRows, kVectors>& acc, const void* const* rows, int64_t depth,
                             Panel<M> panel, bool back, bool far = false) {
  constexpr int L = kLanes<C>;
  constexpr int64_t kAhead = kAheadBytes / sizeof(M);
  const C* a[kRows];
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) a[r] = static_cast<const C*>(rows[r]);
  Vec<C> odd[kSplit - 1 ? kRows : 1][kVectors] = {};
  const auto step = [&](Vec<C>(&sums)[kRows][kVectors], int64_t k) __attribute__((always_inline)) {
    Vec<C> b[kVectors];
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const M* at = panel.data + v / kMaxVectors * panel.next + v % kMaxVectors * L;
      b[v] = load_widened<C>(at, kWhole || v < kVectors - 1 ? L : panel.last);
    }
    panel.data += panel.ld;
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const C x = a[r][k];
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[r][v] += b[v] * x;
    }
  };
  if constexpr (kSplit == 1) {
    // The tiles that large products consist of; the others are not worth the code.
    if constexpr (kWhole && kVectors == kMaxVectors && kRows >= 4) {
      if (far) {
        for (int64_t k = 0; k < depth; ++k) {
          FASTRNN_UNROLL
          for (int v = 0; v < kVectors; ++v) __builtin_prefetch(panel.data + v * L + kAhead);
          step(acc, k);
        }
        return;
      }
    }
    for (int64_t k = 0; k < depth; ++k) step(acc, k);
  } else {
    int64_t k = back ? depth - 1 : 0;
    const int64_t next = back ? -1 : 1;
    if (back) {
      panel.data += k * panel.ld;
      panel.ld = -panel.ld;
    }
    for (int64_t pairs = depth / 2; pairs > 0; --pairs, k += 2 * next) {
      step(acc, k);
      step(odd, k + next);
    }
    if (depth % 2) step(acc, k);
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[r][v] += odd[r][v];
    }
  }
}

// Where a tile stands in a result.
struct TilePlace {
  int64_t column;
  int row;
  int last;  // lanes of its last vector that are inside
};

// End a tile: out = epilogue(sums), for its rows and vectors.
template <typename C, typename F>
FASTRNN_INLINE void finish_with(F f, const Product<C>& p, TilePlace at, int rows, int vectors,
                                const Vec<C>* sums) {
  constexpr int L = kLanes<C>;
  for (int r = 0; r < rows; ++r) {
    C* out = p.out[at.row + r] + at.column;
    const C* h = p.state ? p.state[at.row + r] + at.column : nullptr;
    const int whole = at.last < L ? vectors - 1 : vectors;
    for (int v = 0; v < whole; ++v) store(out + v * L, f(*sums++, h ? load(h + v * L) : Vec<C>{}));
    if (whole < vectors) {
      store_first(out + whole * L, f(*sums++, h ? load_first(h + whole * L, at.last) : Vec<C>{}),
                  at.last);
    }
  }
}

#if defined(FASTRNN_AVX512_BF16)
template <int kRows, int kVectors>
FASTRNN_INLINE void multiply_pairs(Vec<float> (&acc)[kRows][kVectors], const void* const* rows,
                                   int64_t depth, const float* panel) {
  constexpr int L = kLanes<float>;
  const BFloat16* a[kRows];
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) a[r] = static_cast<const BFloat16*>(rows[r]);
  const auto step = [&](auto pair_of) __attribute__((always_inline)) {
    Vec<float> b[kVectors];
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) b[v] = load(panel + v * L);
    panel += kVectors * L;
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const uint32_t pair = pair_of(a[r]);
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[r][v] = add_pair(acc[r][v], b[v], pair);
    }
  };
  for (int64_t k = 0; k + 1 < depth; k += 2) {
    step([k](const BFloat16* p) __attribute__((always_inline)) { return pair_at(p + k); });
  }
  if (depth % 2) {
    step([depth](const BFloat16* p)
             __attribute__((always_inline)) { return uint32_t{p[depth - 1].bits}; });
  }
}
#endif

template <typename C>
__attribute__((noinline)) void finish(const Product<C>& p, TilePlace at, int rows, int vectors,
                                      const Vec<C>* sums) {
  with_epilogue<C>(p.epilogue, [&](auto f) __attribute__((always_inline)) {
    finish_with<C>(f, p, at, rows, vectors, sums);
  });
}

// The same for a leaky step.
template <typename C>
__attribute__((noinline)) void finish_leak(const Product<C>& p, TilePlace at, int rows, int vectors,
                                           const Vec<C>* sums) {
  constexpr int L = kLanes<C>;
  const int whole = at.last < L ? vectors - 1 : vectors;
  with_leak<C>(p.leak.form, p.epilogue, [&](auto f) __attribute__((always_inline)) {
    for (int r = 0; r < rows; ++r) {
      const LeakRow<C> row(p, at.row + r);
      int64_t column = at.column;
      for (int v = 0; v < whole; ++v, column += L) row.end(f, column, L, *sums++);
      if (whole < vectors) row.end(f, column, at.last, *sums++);
    }
  });
}

// The same for one row, from registers: short rows are limited by latency.
template <typename C, int kVectors>
FASTRNN_INLINE void finish_row(const Product<C>& p, TilePlace at, const Vec<C> (&sums)[kVectors]) {
  constexpr int L = kLanes<C>;
  C* out = p.out[at.row] + at.column;
  Vec<C> h[kVectors] = {};
  if (p.state) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      h[v] = load_widened<C>(p.state[at.row] + at.column + v * L, v < kVectors - 1 ? L : at.last);
    }
  }
  with_epilogue<C>(p.epilogue, [&](auto f) __attribute__((always_inline)) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors - 1; ++v) store(out + v * L, f(sums[v], h[v]));
    const Vec<C> y = f(sums[kVectors - 1], h[kVectors - 1]);
    at.last < L ? store_first(out + (kVectors - 1) * L, y, at.last)
                : store(out + (kVectors - 1) * L, y);
  });
}

// M of packed matrices, whose layout does not depend on the storage type.
struct Packed {};
struct Pairs {};

template <typename A, typename B>
constexpr bool kIsSame = false;
template <typename A>
constexpr bool kIsSame<A, A> = true;

// The sums of a tile as they start: from the product's start or bias, or from zero.
template <typename C, int kRows, int kVectors>
FASTRNN_INLINE void start_sums(Sums<C, kRows, kVectors>& acc, const Product<C>& p, TilePlace at) {
  constexpr int L = kLanes<C>;
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (p.start) {
        const C* start = p.start[at.row + r] + at.column + v * L;
        acc[r][v] = v == kVectors - 1 && at.last < L ? load_first(start, at.last) : load(start);
      } else {
        acc[r][v] = p.bias ? load(p.bias + at.column + v * L) : Vec<C>{};
      }
    }
  }
}

template <typename C, int kRows, int kVectors>
FASTRNN_INLINE void fetch_rows(const Product<C>& p, TilePlace at) {
  for (const void* const* rows : p.ahead) {
    if (!rows) continue;
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const C* row = static_cast<const C*>(rows[at.row + r]);
        __builtin_prefetch(row + at.column + v * kLanes<C>, 0, 2);
      }
    }
  }
}

template <typename C, typename M, int kSplit, int kRows, int kVectors>
FASTRNN_INLINE void add_term(Sums<C, kRows, kVectors>& acc, const Product<C>& p,
                             const typename Product<C>::Term& term, TilePlace at) {
  constexpr int64_t L = kLanes<C>;
  const void* const* rows = term.rows + at.row;
  if constexpr (kIsSame<M, Packed>) {
    constexpr int64_t ld = (kVectors < kMaxVectors ? kVectors : kMaxVectors) * L;
    const C* data = static_cast<const C*>(term.matrix) + at.column * term.depth;
    multiply<C, true, kSplit>(acc, rows, term.depth,
                              Panel<C>{.data = data, .ld = ld, .next = ld * term.depth, .last = L},
                              p.k_back, term.far);
  } else if constexpr (kIsSame<M, Pairs>) {
#if defined(FASTRNN_AVX512_BF16)
    const C* panel = static_cast<const C*>(term.matrix) + at.column * ((term.depth + 1) / 2);
    multiply_pairs(acc, rows, term.depth, panel);
#endif
  } else {
    const M* data = static_cast<const M*>(term.matrix) + at.column;
    multiply<C, false, kSplit>(
        acc, rows, term.depth,
        Panel<M>{.data = data, .ld = p.columns, .next = kMaxVectors * L, .last = at.last},
        p.k_back);
  }
}

// Computes one tile of kRows rows and kVectors vectors, at that place.
template <typename C, typename M, int kRows, int kVectors, int kSplit>
__attribute__((noinline)) void tile(const Product<C>& p, TilePlace at) {
  constexpr int L = kLanes<C>;
  fetch_rows<C, kRows, kVectors>(p, at);
  Sums<C, kRows, kVectors> acc;
  start_sums<C, kRows, kVectors>(acc, p, at);
  for (const auto& term : p.terms) {
    if (term.depth > 0) add_term<C, M, kSplit, kRows, kVectors>(acc, p, term, at);
  }
  if (p.added) {
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const C* added = p.added[at.row + r] + at.column;
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] += load_widened<C>(added + v * L, v < kVectors - 1 ? L : at.last);
      }
    }
  }
  if (p.epilogue == Epilogue::kStore && at.last == L) {
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) store(p.out[at.row + r] + at.column + v * L, acc[r][v]);
    }
    return;
  }
  if constexpr (kRows == 1) {
    if (p.leak.form == Leak::kNone) return finish_row<C, kVectors>(p, at, acc[0]);
  }
  Sums<C, kRows, kVectors> sums;  // in memory: acc stays in registers
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = acc[r][v];
  }
  p.leak.form == Leak::kNone ? finish<C>(p, at, kRows, kVectors, &sums[0][0])
                             : finish_leak<C>(p, at, kRows, kVectors, &sums[0][0]);
}

template <typename C, typename M, int kVectors, int kRows>
FASTRNN_INLINE void tile_of(int rows, const Product<C>& p, TilePlace at) {
  if (rows == kRows) {
    if constexpr (kRows <= 2 && !kIsSame<M, Pairs>) {
      if (p.split) return tile<C, M, kRows, kVectors, 2>(p, at);
    }
    return tile<C, M, kRows, kVectors, 1>(p, at);
  }
  if constexpr (kRows > 1) tile_of<C, M, kVectors, kRows - 1>(rows, p, at);
}

template <typename M>
constexpr int most_rows(int vectors) {
  return kIsSame<M, Packed> || kIsSame<M, Pairs> ? max_rows(vectors) : kMaxNaturalRows;
}

// All rows of one panel of `width` vectors; `at` is its first.
template <typename C, typename M>
void run_panel(const Product<C>& p, int rows, int width, TilePlace at) {
  for (int tiles = ceil_div(rows, most_rows<M>(width)); tiles > 0; --tiles) {
    const int n = ceil_div(rows - at.row, tiles);
    switch (width) {
      case 1:
        tile_of<C, M, 1, most_rows<M>(1)>(n, p, at);
        break;
      case 2:
        tile_of<C, M, 2, most_rows<M>(2)>(n, p, at);
        break;
      default:
        if constexpr (kMaxVectors > 2) {
          width == 3 ? tile_of<C, M, 3, most_rows<M>(3)>(n, p, at)
                     : tile_of<C, M, 4, most_rows<M>(4)>(n, p, at);
        }
    }
    at.row += n;
  }
}

// The columns of the part-th of `parts` ranges of panels.
template <typename C, typename M>
void run_panels(const Product<C>& p, int64_t rows, int part, int parts) {
  const Panels<C> panels(p.columns);
  const int64_t first = parts > 1 ? panels.count * part / parts : 0;
  const int64_t end = parts > 1 ? panels.count * (part + 1) / parts : panels.count;
  const auto place = [&](int64_t begin, int width) {
    const int64_t column = begin * kLanes<C>;
    const int64_t inside = p.columns - column - (width - 1) * kLanes<C>;
    return TilePlace{.column = column,
                     .row = 0,
                     .last = static_cast<int>(inside < kLanes<C> ? inside : kLanes<C>)};
  };
  for (int64_t i = first; i < end; ++i) {
    const int64_t panel = p.back ? end - 1 - (i - first) : i;
    const int width = panels.width(panel);
    if constexpr (kMaxVectors == 2) {
      // A row has too few sums in a panel of two vectors to hide a sum's latency: it takes two
      // panels.
      const int64_t other = p.back ? panel - 1 : panel + 1;
      if (rows == 1 && p.split && width == 2 && i + 1 < end && panels.width(other) == 2) {
        tile<C, M, 1, 4, 2>(p, place(panels.begin(p.back ? other : panel), 4));
        ++i;
        continue;
      }
    }
    run_panel<C, M>(p, static_cast<int>(rows), width, place(panels.begin(panel), width));
  }
}

}  // namespace
}  // namespace fastrnn::cpu
