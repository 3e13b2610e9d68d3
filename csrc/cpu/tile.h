// The microkernel: a tile of a matrix product in registers, started from a bias or from rows, and
// ended by more rows and an activation.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fastrnn::cpu {
namespace {

constexpr int kMaxVectors = kVectorRegisters >= 32 ? 4 : 2;  // vectors of columns in a panel

// Rows of a tile, so that tile, a row of the panel and one broadcast fit the registers.
constexpr int max_rows(int vectors) {
  const int rows = (kVectorRegisters >= 32 ? 24 : 12) / vectors;
  return rows < 12 ? rows : 12;
}

constexpr int kMaxNaturalRows = 6;  // of a tile on a matrix that is not packed

// Columns are dealt evenly to panels, in whole vectors.
template <typename C>
struct Panels {
  int64_t vectors, count, even, more;
  explicit Panels(int64_t columns)
      : vectors((columns + kLanes<C> - 1) / kLanes<C>),
        count((vectors + kMaxVectors - 1) / kMaxVectors),
        even(count > 1 ? static_cast<uint32_t>(vectors) / static_cast<uint32_t>(count) : vectors),
        more(vectors - even * count) {}
  // The first vector of panel p.
  int64_t begin(int64_t p) const { return p * even + (p < more ? p : more); }
  int width(int64_t p) const { return static_cast<int>(even + (p < more)); }
};

enum class Epilogue { kStore, kTanh, kRelu, kTanhGrad, kReluGrad };

FASTRNN_INLINE Epilogue epilogue_of(Nonlinearity f) {
  switch (f) {
    case Nonlinearity::kTanh:
      return Epilogue::kTanh;
    case Nonlinearity::kRelu:
      return Epilogue::kRelu;
  }
  return Epilogue::kStore;
}
FASTRNN_INLINE Epilogue grad_epilogue_of(Nonlinearity f) {
  switch (f) {
    case Nonlinearity::kTanh:
      return Epilogue::kTanhGrad;
    case Nonlinearity::kRelu:
      return Epilogue::kReluGrad;
  }
  return Epilogue::kStore;
}

// How the matrices of a product lie in memory.
enum class Layout {
  kPacked,      // panels of [depth, columns]
  kPairs,       // panels of [depth / 2, columns] pairs of bfloat16; rows are bfloat16 too
  kNatural,     // [depth, columns] row-major, as they came
  kTransposed,  // [columns, depth] row-major, as they came
};

// out[r] = epilogue(start[r] + sum over terms of rows[r] @ matrix + added[r]), for n rows.
// The order in which an element is summed depends on layout and split, not on the tile that it
// falls into: so results do not depend on how rows and columns are shared out.
template <typename C>
struct Product {
  struct Term {
    const void* const* rows;  // of C, or of bfloat16 for kPairs
    int64_t depth;            // 0: no such term
    const void* matrix;       // packed: of C, else of the storage type
    bool far;                 // worth fetching ahead: it comes from far away at each reading
  };
  Layout layout = Layout::kPacked;
  bool split = false;   // sum even and odd k apart: for a row or two, one chain of sums is too slow
  bool back = false;    // walk panels from the end: what was read last is in cache
  bool k_back = false;  // if split, sum from the last k to the first
  Term terms[2] = {};
  const C* bias = nullptr;          // start of every row, padded; or null
  const C* const* start = nullptr;  // start of each row; or null
  const C* const* added = nullptr;  // to the sum: not rounded again with every k; or null
  const C* const* state = nullptr;  // h, for the derivatives
  C* const* out = nullptr;
  const void* const* ahead[3] = {};  // rows of C to fetch into cache meanwhile; or null
  int64_t columns = 0;
  Epilogue epilogue = Epilogue::kStore;
};

// acc += rows @ panel. ld is the distance between the panel's rows, `next_panel` that to the panel
// of the vectors from kMaxVectors on; of the last vector, `last` lanes are read, or all if kWhole.
// `far`: as in Product::Term.
template <typename C, bool kWhole, int kSplit, typename M, int kRows, int kVectors>
FASTRNN_INLINE void multiply(Vec<C> (&acc)[kRows][kVectors], const void* const* rows, int64_t depth,
                             const M* panel, int64_t ld, int64_t next_panel, int last, bool back,
                             bool far = false) {
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
      const M* at = panel + v / kMaxVectors * next_panel + v % kMaxVectors * L;
      b[v] = load_widened<C>(at, kWhole || v < kVectors - 1 ? L : last);
    }
    panel += ld;
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
          for (int v = 0; v < kVectors; ++v) __builtin_prefetch(panel + v * L + kAhead);
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
      panel += k * ld;
      ld = -ld;
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

// End a tile: out = epilogue(sums), for its rows and vectors. `last` lanes of the last vector are
// inside the matrix.
template <typename C, typename F>
FASTRNN_INLINE void finish_with(F f, const Product<C>& p, int64_t row, int rows, int64_t column,
                                int vectors, int last, const Vec<C>* sums) {
  constexpr int L = kLanes<C>;
  for (int r = 0; r < rows; ++r) {
    C* out = p.out[row + r] + column;
    const C* h = p.state ? p.state[row + r] + column : nullptr;
    const int whole = last < L ? vectors - 1 : vectors;
    for (int v = 0; v < whole; ++v) store(out + v * L, f(*sums++, h ? load(h + v * L) : Vec<C>{}));
    if (whole < vectors) {
      store_first(out + whole * L, f(*sums++, h ? load_first(h + whole * L, last) : Vec<C>{}),
                  last);
    }
  }
}

// Function objects, not lambdas: GCC does not apply the target pragma to a lambda's own signature.
template <typename C>
struct StoreEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C>) const { return x; }
};
template <typename C>
struct TanhEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C>) const { return tanh<C>(x); }
};
template <typename C>
struct ReluEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C>) const { return relu<C>(x); }
};
template <typename C>
struct TanhGradEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C> h) const { return x * (1 - h * h); }
};
template <typename C>
struct ReluGradEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C> h) const {
    return h <= 0 ? Vec<C>{} : x;  // NaN passes, as in torch
  }
};

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

// Calls with(f) for the epilogue's function f.
template <typename C, typename With>
FASTRNN_INLINE void with_epilogue(Epilogue epilogue, const With& with) {
  switch (epilogue) {
    case Epilogue::kStore:
      return with(StoreEpilogue<C>{});
    case Epilogue::kTanh:
      return with(TanhEpilogue<C>{});
    case Epilogue::kRelu:
      return with(ReluEpilogue<C>{});
    case Epilogue::kTanhGrad:
      return with(TanhGradEpilogue<C>{});
    case Epilogue::kReluGrad:
      return with(ReluGradEpilogue<C>{});
  }
}

template <typename C>
__attribute__((noinline)) void finish(const Product<C>& p, int64_t row, int rows, int64_t column,
                                      int vectors, int last, const Vec<C>* sums) {
  with_epilogue<C>(p.epilogue, [&](auto f) __attribute__((always_inline)) {
    finish_with<C>(f, p, row, rows, column, vectors, last, sums);
  });
}

// The same for one row, from registers: short rows are a matter of latency.
template <typename C, int kVectors>
FASTRNN_INLINE void finish_row(const Product<C>& p, int64_t row, int64_t column, int last,
                               const Vec<C> (&sums)[kVectors]) {
  constexpr int L = kLanes<C>;
  C* out = p.out[row] + column;
  Vec<C> h[kVectors] = {};
  if (p.state) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      h[v] = load_widened<C>(p.state[row] + column + v * L, v < kVectors - 1 ? L : last);
    }
  }
  with_epilogue<C>(p.epilogue, [&](auto f) __attribute__((always_inline)) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors - 1; ++v) store(out + v * L, f(sums[v], h[v]));
    const Vec<C> y = f(sums[kVectors - 1], h[kVectors - 1]);
    last < L ? store_first(out + (kVectors - 1) * L, y, last) : store(out + (kVectors - 1) * L, y);
  });
}

// Take the place of the storage type for packed matrices, which do not depend on it.
struct Packed {};
struct Pairs {};

template <typename A, typename B>
constexpr bool kIsSame = false;
template <typename A>
constexpr bool kIsSame<A, A> = true;

// One tile: rows row .. row + kRows - 1, the columns of the panel that starts at vector `begin`;
// `last` lanes of its last vector are inside the matrix.
template <typename C, typename M, int kRows, int kVectors, int kSplit>
__attribute__((noinline)) void tile(const Product<C>& p, int64_t row, int64_t begin, int last) {
  constexpr int L = kLanes<C>;
  const int64_t column = begin * L;
  for (const void* const* rows : p.ahead) {
    if (!rows) continue;
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        __builtin_prefetch(static_cast<const C*>(rows[row + r]) + column + v * L, 0, 2);
      }
    }
  }
  Vec<C> acc[kRows][kVectors];
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (p.start) {
        const C* start = p.start[row + r] + column + v * L;
        acc[r][v] = v == kVectors - 1 && last < L ? load_first(start, last) : load(start);
      } else {
        acc[r][v] = p.bias ? load(p.bias + column + v * L) : Vec<C>{};
      }
    }
  }
  for (const auto& term : p.terms) {
    if (term.depth == 0) continue;
    if constexpr (kIsSame<M, Packed>) {
      const C* panel = static_cast<const C*>(term.matrix) + column * term.depth;
      constexpr int64_t ld = (kVectors < kMaxVectors ? kVectors : kMaxVectors) * L;
      multiply<C, true, kSplit>(acc, term.rows + row, term.depth, panel, ld, ld * term.depth, L,
                                p.k_back, term.far);
    } else if constexpr (kIsSame<M, Pairs>) {
#if defined(FASTRNN_AVX512_BF16)
      const C* panel = static_cast<const C*>(term.matrix) + column * ((term.depth + 1) / 2);
      multiply_pairs(acc, term.rows + row, term.depth, panel);
#endif
    } else {
      const M* panel = static_cast<const M*>(term.matrix) + column;
      multiply<C, false, kSplit>(acc, term.rows + row, term.depth, panel, p.columns,
                                 kMaxVectors * L, last, p.k_back);
    }
  }
  if (p.added) {
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const C* added = p.added[row + r] + column;
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] += load_widened<C>(added + v * L, v < kVectors - 1 ? L : last);
      }
    }
  }
  if (p.epilogue == Epilogue::kStore && last == L) {
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; ++v) store(p.out[row + r] + column + v * L, acc[r][v]);
    }
    return;
  }
  if constexpr (kRows == 1) return finish_row<C, kVectors>(p, row, column, last, acc[0]);
  Vec<C> sums[kRows][kVectors];
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = acc[r][v];
  }
  finish<C>(p, row, kRows, column, kVectors, last, &sums[0][0]);
}

template <typename C, typename M, int kVectors, int kRows>
FASTRNN_INLINE void tile_of(int rows, const Product<C>& p, int64_t row, int64_t begin, int last) {
  if (rows == kRows) {
    if constexpr (kRows <= 2 && !kIsSame<M, Pairs>) {
      if (p.split) return tile<C, M, kRows, kVectors, 2>(p, row, begin, last);
    }
    return tile<C, M, kRows, kVectors, 1>(p, row, begin, last);
  }
  if constexpr (kRows > 1) tile_of<C, M, kVectors, kRows - 1>(rows, p, row, begin, last);
}

template <typename M>
constexpr int most_rows(int vectors) {
  return kIsSame<M, Packed> || kIsSame<M, Pairs> ? max_rows(vectors) : kMaxNaturalRows;
}

FASTRNN_INLINE int ceil_div(int a, int b) {
  return a <= b ? 1 : (a + b - 1) / b;
}  // a, b > 0; mostly 1

// The columns of the part-th of `parts` ranges of panels.
template <typename C, typename M>
void run_panels(const Product<C>& p, int64_t rows, int part, int parts) {
  const Panels<C> panels(p.columns);
  const int64_t first = parts > 1 ? panels.count * part / parts : 0;
  const int64_t end = parts > 1 ? panels.count * (part + 1) / parts : panels.count;
  for (int64_t i = first; i < end; ++i) {
    const int64_t panel = p.back ? end - 1 - (i - first) : i;
    const int width = panels.width(panel);
    // A row has too few sums in a panel of two vectors to hide a sum's latency: it takes two
    // panels.
    const int64_t other = p.back ? panel - 1 : panel + 1;
    const bool both = kMaxVectors == 2 && rows == 1 && p.split && width == 2 && i + 1 < end &&
                      panels.width(other) == 2;
    const int64_t begin = panels.begin(both && p.back ? other : panel);
    const int64_t inside = p.columns - (begin + (both ? 2 * width : width) - 1) * kLanes<C>;
    const int last = static_cast<int>(inside < kLanes<C> ? inside : kLanes<C>);
    if constexpr (kMaxVectors == 2) {
      if (both) {
        tile<C, M, 1, 4, 2>(p, 0, begin, last);
        ++i;
        continue;
      }
    }
    const int most = most_rows<M>(width), tiles = ceil_div(static_cast<int>(rows), most);
    int64_t row = 0;
    for (int j = tiles; j > 0; --j) {
      const int n = ceil_div(static_cast<int>(rows - row), j);
      switch (width) {
        case 1:
          tile_of<C, M, 1, most_rows<M>(1)>(n, p, row, begin, last);
          break;
        case 2:
          tile_of<C, M, 2, most_rows<M>(2)>(n, p, row, begin, last);
          break;
        default:
          if constexpr (kMaxVectors > 2) {
            width == 3 ? tile_of<C, M, 3, most_rows<M>(3)>(n, p, row, begin, last)
                       : tile_of<C, M, 4, most_rows<M>(4)>(n, p, row, begin, last);
          }
      }
      row += n;
    }
  }
}

}  // namespace
}  // namespace fastrnn::cpu
