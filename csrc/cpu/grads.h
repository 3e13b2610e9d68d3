// The gradients that are products over all steps at once: of a layer's input, and of its weights.
#pragma once

#include "cpu/outer.h"
#include "cpu/rows.h"

namespace fastrnn::cpu {
namespace {

// grad_input = sum over directions of grad_pre @ w_ih.
// Tile plan: kBlockRows rows of all steps at a time.
// Sync plan: none. Threads that share columns in the time loop share the rows of all steps here, if
//   there are enough. If not, they share columns again, and all wait before the first applies the
//   mask.
// Limits: none.
template <typename S>
void input_grad(const InputGradTask& task, int64_t begin, int64_t end, void* scratch) {
  using C = typename Accumulate<S>::type;
  const Steps& steps = *task.steps;
  const int64_t H = task.hidden_size, I = task.input_size;
  C* results = Arena<C>(scratch, I, H).take(kBlockRows * padded(I));
  const Plan& plan = *task.plan;
  const Layout layout = layout_of(plan.form, Layout::kNatural);
  constexpr bool kDirect = !kNarrow<S>;
  const void* rows[2][kBlockRows];
  C* out_rows[kBlockRows];
  int64_t times[kBlockRows], indices[kBlockRows];
  int64_t total = 0;
  for (int64_t t = 0; t < steps.seq_len; ++t) {
    total += clamp(active_rows(steps, t), begin, end) - begin;
  }
  const int part = task.share.part, parts = task.share.parts;
  const Share share = plan.share_input_grad ? Share{} : task.share;
  const int64_t first = plan.share_input_grad ? total * part / parts : 0;
  const int64_t past = plan.share_input_grad ? total * (part + 1) / parts : total;
  const bool far = plan.fetch_w_ih[task.above];
  int64_t n = 0, row = 0;
  const auto flush = [&] {
    Product<C> product{.layout = layout,
                       .terms = {{rows[0], H, task.w_ih[0], far}, {rows[1], 0, task.w_ih[1], far}},
                       .out = out_rows,
                       .columns = I};
    if (task.num_directions == 2) product.terms[1].depth = H;
    run_product<S>(product, n, share);
    if (task.input_mask.data) wait(share);
    for (int64_t r = 0; r < n && share.part == 0; ++r) {
      if (const S* mask = mask_row<S>(task.input_mask, steps, times[r], indices[r])) {
        for (int64_t k = 0; k < I; ++k) {
          C m;
          widen(&m, mask + k, 1);
          out_rows[r][k] *= m;
        }
      }
      if (!kDirect) narrow(row_of<S>(task.grad_input, steps, times[r], indices[r]), out_rows[r], I);
    }
    n = 0;
  };
  for (int64_t t = 0; t < steps.seq_len; ++t) {
    const int64_t last = clamp(active_rows(steps, t), begin, end);
    for (int64_t i = begin; i < last; ++i, ++row) {
      if (row < first || row >= past) continue;
      times[n] = t;
      indices[n] = i;
      for (int d = 0; d < task.num_directions; ++d) {
        rows[d][n] = layout == Layout::kPairs
                         ? static_cast<const void*>(row_of<const S>(task.grad_pre[d], steps, t, i))
                         : row_of<const C>(task.grad_pre[d], steps, t, i);
      }
      out_rows[n] = kDirect ? row_of<C>(task.grad_input, steps, t, i) : results + n * padded(I);
      if (++n == kBlockRows) flush();
    }
  }
  flush();
}

// sum += the rows, eight at a time.
template <typename C, typename X>
void add_rows(C* __restrict sum, const X* const* rows, int64_t depth, int64_t n) {
  const auto element = [](const X* row, int64_t j) __attribute__((always_inline)) {
    C x;
    widen(&x, row + j, 1);
    return x;
  };
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    const X* r[8];
    for (int i = 0; i < 8; ++i) r[i] = rows[k + i];
    for (int64_t j = 0; j < n; ++j) {
      const auto pair = [&](int i) __attribute__((always_inline)) {
        return element(r[i], j) + element(r[i + 1], j);
      };
      sum[j] += (pair(0) + pair(2)) + (pair(4) + pair(6));
    }
  }
  for (; k < depth; ++k) {
    for (int64_t j = 0; j < n; ++j) sum[j] += element(rows[k], j);
  }
}

// The sum of many rows: over a block, over kDepthBlock blocks, and over all, so that no sum has so
// many terms that it drifts.
template <typename C>
class RowSum {
 public:
  RowSum(Arena<C>& arena, int64_t n) : n_(n) {
    for (C*& sum : sums_) {
      sum = arena.take(n);
      for (int64_t j = 0; j < n; ++j) sum[j] = 0;
    }
  }
  template <typename X>
  void add_block(const X* const* rows, int64_t depth) {
    add_rows(sums_[0], rows, depth, n_);
    hand_up(0);
    if (++blocks_ % kDepthBlock == 0) hand_up(1);
  }
  const C* total() {
    hand_up(1);
    return sums_[2];
  }

 private:
  void hand_up(int level) {
    for (int64_t j = 0; j < n_; ++j) {
      sums_[level + 1][j] += sums_[level][j];
      sums_[level][j] = 0;
    }
  }

  C* sums_[3];
  int64_t n_, blocks_ = 0;
};

// grad_w_hh = grad_pre^T @ h_prev, grad_w_ih = grad_pre^T @ input, grad_b = sum(grad_pre), for a
// range of hidden units.
// Tile plan: blocks of kDepthBlock rows of all steps. A tile of units by a panel of columns is
//   summed in registers over the block and added to memory. grad_pre is copied (Columns in
//   outer.h); h_prev and input are packed, as many panels at a time as fit. With pairs, two rows of
//   the block are one step of the sum, and grad_pre is copied in pairs as well.
// Sync plan: none; a unit's gradients need all rows' grad_pre, which must be complete.
// Limits: none.
// Why: one product over all steps runs at the speed of a matrix product; one a step does not.
// The rows of a block are of X: the accumulation type, or S where it has pairs.
template <typename S, typename X>
class WeightGrad {
  using C = typename Accumulate<S>::type;
  static constexpr bool kPairs = kHasPairs<X>;

 public:
  WeightGrad(const WeightGradTask& task, int64_t begin, int64_t end, void* scratch)
      : task_(task),
        walk_{*task.steps, task.reverse},
        begin_(begin),
        units_(end - begin),
        H_(task.hidden_size),
        I_(task.input_size),
        arena_(scratch, I_, H_),
        states_(arena_.take(kNarrow<S> && !kPairs ? kDepthBlock * H_ : 0)),
        inputs_(
            arena_.take((kNarrow<S> && !kPairs) || task.input_mask.data ? kDepthBlock * I_ : 0)),
        grads_(arena_.take(Columns<C>::room(units_)), units_),
        panel_(arena_.take(kDepthBlock * kMaxVectors * kLanes<C>)),
        bias_(arena_, units_),
        zeros_(arena_.take_zeros(H_)) {}

  void run() {
    C* w_hh = static_cast<C*>(kNarrow<S> ? task_.sums_w_hh : task_.grad_w_hh) + begin_ * H_;
    C* w_ih = static_cast<C*>(kNarrow<S> ? task_.sums_w_ih : task_.grad_w_ih) + begin_ * I_;
    bool add = false;
    for (skip_empty_steps(); t_ < walk_.steps.seq_len || !add; add = true) {
      const int64_t depth = gather();
      bias_.add_block(grad_rows_, depth);
      copy_grads(depth);
      run_outer(grads_, state_rows_, H_, depth, panel_, w_hh, add);
      run_outer(grads_, input_rows_, I_, depth, panel_, w_ih, add);
    }
    if constexpr (kNarrow<S>) {
      narrow(static_cast<S*>(task_.grad_w_hh) + begin_ * H_, w_hh, units_ * H_);
      narrow(static_cast<S*>(task_.grad_w_ih) + begin_ * I_, w_ih, units_ * I_);
    }
    if (task_.grad_b_ih) {
      const C* sum = bias_.total();
      narrow(static_cast<S*>(task_.grad_b_ih) + begin_, sum, units_);
      narrow(static_cast<S*>(task_.grad_b_hh) + begin_, sum, units_);
    }
  }

 private:
  void skip_empty_steps() {
    while (t_ < walk_.steps.seq_len && i_ >= active_rows(walk_.steps, t_)) {
      ++t_;
      i_ = 0;
    }
  }

  // The block's rows. Returns how many: kDepthBlock, or what is left.
  int64_t gather() {
    const Steps& steps = walk_.steps;
    int64_t depth = 0;
    for (; depth < kDepthBlock && t_ < steps.seq_len; ++depth, ++i_, skip_empty_steps()) {
      grad_rows_[depth] = row_of<const X>(task_.grad_pre, steps, t_, i_) + begin_;
      const S* h = h_prev_row(t_, i_);
      const void* state = h ? operand<S, C>(kLayout, h, nullptr, states_ + depth * H_, H_) : zeros_;
      state_rows_[depth] = static_cast<const X*>(state);
      const S* x = row_of<const S>(task_.input, steps, t_, i_);
      const S* mask = mask_row<S>(task_.input_mask, steps, t_, i_);
      input_rows_[depth] =
          static_cast<const X*>(operand<S, C>(kLayout, x, mask, inputs_ + depth * I_, I_));
    }
    return depth;
  }

  const S* h_prev_row(int64_t t, int64_t i) const {  // or null: zeros
    const Steps& steps = walk_.steps;
    if (walk_.continues(t, i)) return row_of<const S>(task_.state, steps, walk_.before(t), i);
    if (!task_.hx || walk_.begins_anew(t, i)) return nullptr;
    return static_cast<const S*>(task_.hx) + original_row(steps, i) * task_.hx_row_stride;
  }

  void copy_grads(int64_t depth) {
    for (int64_t chunk = 0, first = 0; chunk < grads_.chunks(); first += grads_.size(chunk++)) {
      const int64_t size = grads_.size(chunk);
      if constexpr (kPairs) {
#if defined(FASTRNN_AVX512_BF16)
        for (int64_t k = 0; k < depth; k += 2) {
          const BFloat16* low = grad_rows_[k] + first;
          const BFloat16* high = k + 1 < depth ? grad_rows_[k + 1] + first : nullptr;
          for (int64_t j = 0; j < size; j += kLanes<C>) {
            const int64_t n = size - j < kLanes<C> ? size - j : kLanes<C>;
            store(grads_.row(chunk, k / 2) + j, interleave(low + j, high ? high + j : nullptr, n));
          }
        }
#endif
      } else {
        for (int64_t k = 0; k < depth; ++k) {
          std::memcpy(grads_.row(chunk, k), grad_rows_[k] + first, size * sizeof(C));
        }
      }
    }
  }

  static constexpr Layout kLayout = kPairs ? Layout::kPairs : Layout::kPacked;
  const WeightGradTask& task_;
  const Walk walk_;
  const int64_t begin_, units_, H_, I_;
  Arena<C> arena_;
  C *states_, *inputs_;  // rows of the block that were widened or masked
  const Columns<C> grads_;
  C* panel_;
  RowSum<C> bias_;
  C* zeros_;
  int64_t t_ = 0, i_ = 0;  // the next row
  const X *grad_rows_[kDepthBlock], *state_rows_[kDepthBlock], *input_rows_[kDepthBlock];
};

// grad_alpha, for a range of hidden units: from the gradient of every state and the way that the
// state would have gone on with a larger alpha. Sync plan: as WeightGrad.
template <typename S>
void alpha_grad(const AlphaGradTask& task, int64_t begin, int64_t end, void* scratch) {
  using C = typename Accumulate<S>::type;
  if (begin >= end) return;
  const Steps& steps = *task.steps;
  const Walk walk{steps, task.reverse};
  const int64_t units = end - begin, H = task.hidden_size;
  Arena<C> arena(scratch, task.input_size, H);
  C* const products = arena.take(kDepthBlock * units);
  C* const wide[] = {arena.take(units), arena.take(units)};
  const C* const zeros = arena.take_zeros(units);
  RowSum<C> sum(arena, units);
  const C* rows[kDepthBlock];
  int64_t depth = 0;
  const auto state_before = [&](int64_t t, int64_t i) -> const S* {  // null: zeros
    if (task.leak == Leak::kCurrent) return nullptr;                 // it has been subtracted
    if (walk.continues(t, i)) return row_of<const S>(task.state, steps, walk.before(t), i) + begin;
    if (!task.hx || walk.begins_anew(t, i)) return nullptr;
    const int64_t row = original_row(steps, i);
    return static_cast<const S*>(task.hx) + row * task.hx_row_stride + begin;
  };
  for (int64_t t = 0; t < steps.seq_len; ++t) {
    for (int64_t i = 0; i < active_rows(steps, t); ++i) {
      const C* g = row_of<const C>(task.grad_state, steps, t, i) + begin;
      const S* before = state_before(t, i);
      const C* kept =
          widened<S, C>(row_of<const S>(task.kept, steps, t, i) + begin, nullptr, wide[0], units);
      const C* h = before ? widened<S, C>(before, nullptr, wide[1], units) : zeros;
      C* product = products + depth * units;
      for (int64_t k = 0; k < units; ++k) product[k] = g[k] * (kept[k] - h[k]);
      rows[depth] = product;
      if (++depth < kDepthBlock) continue;
      sum.add_block(rows, depth);
      depth = 0;
    }
  }
  sum.add_block(rows, depth);
  std::memcpy(static_cast<C*>(task.grad_alpha) + begin, sum.total(), units * sizeof(C));
}

template <typename S>
void weight_grad(const WeightGradTask& task, int64_t begin, int64_t end, void* scratch) {
  if (begin >= end) return;
  if constexpr (kHasPairs<S>) {
    if (task.plan->form == Form::kPackedPairs)
      return WeightGrad<S, S>(task, begin, end, scratch).run();
  }
  WeightGrad<S, typename Accumulate<S>::type>(task, begin, end, scratch).run();
}

}  // namespace
}  // namespace fastrnn::cpu
