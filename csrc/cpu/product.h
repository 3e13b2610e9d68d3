// A matrix product as its caller describes it, and the panels that its matrices are packed in.
#pragma once

#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/storage.h"

namespace fastrnn::cpu {
namespace {

constexpr int kMaxVectors = kVectorRegisters >= 32 ? 4 : 2;  // vectors of columns in a panel

// Rows of a tile, so that tile, a row of the panel and one broadcast fit the registers.
constexpr int max_rows(int vectors) {
  const int rows = (kVectorRegisters >= 32 ? 24 : 12) / vectors;
  return rows < 12 ? rows : 12;
}

// a, b > 0; mostly 1.
FASTRNN_INLINE int ceil_div(int a, int b) { return a <= b ? 1 : (a + b - 1) / b; }

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

// How the matrices of a product lie in memory.
enum class Layout {
  kPacked,      // panels of [depth, columns]
  kPairs,       // panels of [depth / 2, columns] pairs of bfloat16; rows are bfloat16 too
  kNatural,     // [depth, columns] row-major, as they came
  kTransposed,  // [columns, depth] row-major, as they came
};

// What a leaky layer's step does besides, see rnn.h. Forward, the state leaks from step to step;
// backward, its gradient. All rows of C.
template <typename C>
struct Leaking {
  Leak form = Leak::kNone;
  const C* alpha = nullptr;           // of each column, padded
  const C* const* carried = nullptr;  // the state before; the gradient that leaks back
  C* const* carry = nullptr;          // the state; (1 - alpha) times its gradient; or null
  C* const* kept = nullptr;           // what rnn.h calls kept; the state's gradient; or null
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
    bool far;                 // worth prefetching: it comes from far away each time it is read
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
  Leaking<C> leak = {};
};

// Ends a row of a leaky step, n columns at a time. It holds the row's pointers, which a compiler
// would load again after each store.
template <typename C>
class LeakRow {
 public:
  FASTRNN_INLINE LeakRow(const Product<C>& p, int64_t row)
      : state_(p.state ? p.state[row] : nullptr),
        carried_(p.leak.carried[row]),
        alpha_(p.leak.alpha),
        out_(p.out[row]),
        carry_(p.leak.carry ? p.leak.carry[row] : nullptr),
        kept_(p.leak.kept ? p.leak.kept[row] : nullptr) {}

  template <typename F>
  FASTRNN_INLINE void end(F f, int64_t column, int n, Vec<C> sum) const {
    const Vec<C> h = state_ ? load_widened<C>(state_ + column, n) : Vec<C>{};
    const Leaked<C> y = f(sum, h, load_widened<C>(carried_ + column, n), load(alpha_ + column));
    put(out_ + column, y.out, n);
    if (carry_) put(carry_ + column, y.carry, n);
    if (kept_) put(kept_ + column, y.kept, n);
  }

 private:
  static FASTRNN_INLINE void put(C* to, Vec<C> x, int n) {
    n < kLanes<C> ? store_first(to, x, n) : store(to, x);
  }

  const C *state_, *carried_, *alpha_;
  C *out_, *carry_, *kept_;
};

}  // namespace
}  // namespace fastrnn::cpu
