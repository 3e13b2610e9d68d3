// The gradients that are products over all steps at once: of a layer's input, and of its weights.
#pragma once

#include "cpu/layer.h"
#include "cpu/outer.h"

namespace fastrnn::cpu {
namespace {

// grad_input = sum over directions of grad_pre @ w_ih.
// Tile plan: kBlockRows rows of all steps at a time.
// Sync plan: none. What the time loop shares by columns is shared here by rows of all steps, where
//   there are enough; else by columns, and before the first part masks the result, all wait.
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
    run<S>(product, n, share);
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

// The sum of many rows: of a block, of kDepthBlock blocks, and of all, so that no sum has so many
// terms that it drifts.
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

// The rows of a block of weight_grad, of X: the accumulation type, or S where it has pairs.
template <typename S, typename X>
void weight_grad_of(const WeightGradTask& task, int64_t begin, int64_t end, void* scratch) {
  using C = typename Accumulate<S>::type;
  constexpr bool kPairs = kHasPairs<X>;
  const Steps& steps = *task.steps;
  const Walk walk{steps, task.reverse};
  const Layout layout = kPairs ? Layout::kPairs : Layout::kPacked;
  const int64_t H = task.hidden_size, I = task.input_size, units = end - begin;

  Arena<C> arena(scratch, I, H);
  C* states = arena.take(kNarrow<S> && !kPairs ? kDepthBlock * H : 0);
  C* inputs = arena.take((kNarrow<S> && !kPairs) || task.input_mask.data ? kDepthBlock * I : 0);
  const Columns<C> grads(arena.take(Columns<C>::room(units)), units);
  C* panel = arena.take(kDepthBlock * kMaxVectors * kLanes<C>);
  RowSum<C> bias(arena, units);
  C* zeros = arena.take(H);
  C* w_hh = static_cast<C*>(kNarrow<S> ? task.sums_w_hh : task.grad_w_hh) + begin * H;
  C* w_ih = static_cast<C*>(kNarrow<S> ? task.sums_w_ih : task.grad_w_ih) + begin * I;
  for (int64_t k = 0; k < H; ++k) zeros[k] = 0;

  int64_t t = 0, i = 0;  // the next row
  const auto skip_empty = [&] {
    while (t < steps.seq_len && i >= active_rows(steps, t)) {
      ++t;
      i = 0;
    }
  };
  bool add = false;
  for (skip_empty(); t < steps.seq_len || !add; add = true) {
    const X* grad_rows[kDepthBlock];
    const X* state_rows[kDepthBlock];
    const X* input_rows[kDepthBlock];
    int64_t depth = 0;
    for (; depth < kDepthBlock && t < steps.seq_len; ++depth, ++i, skip_empty()) {
      const X* grad = row_of<const X>(task.grad_pre, steps, t, i) + begin;
      grad_rows[depth] = grad;
      const S* h = nullptr;
      if (walk.continues(t, i)) {
        h = row_of<const S>(task.state, steps, walk.before(t), i);
      } else if (task.hx && !walk.begins_anew(t, i)) {
        h = static_cast<const S*>(task.hx) + original_row(steps, i) * task.hx_row_stride;
      }
      const S* x = row_of<const S>(task.input, steps, t, i);
      const S* mask = mask_row<S>(task.input_mask, steps, t, i);
      const void* state = h ? operand<S, C>(layout, h, nullptr, states + depth * H, H) : zeros;
      state_rows[depth] = static_cast<const X*>(state);
      input_rows[depth] =
          static_cast<const X*>(operand<S, C>(layout, x, mask, inputs + depth * I, I));
    }
    bias.add_block(grad_rows, depth);
    for (int64_t chunk = 0, first = 0; chunk < grads.chunks(); first += grads.size(chunk++)) {
      const int64_t size = grads.size(chunk);
      if constexpr (kPairs) {
#if defined(FASTRNN_AVX512_BF16)
        for (int64_t k = 0; k < depth; k += 2) {
          const BFloat16* low = grad_rows[k] + first;
          const BFloat16* high = k + 1 < depth ? grad_rows[k + 1] + first : nullptr;
          for (int64_t j = 0; j < size; j += kLanes<C>) {
            const int64_t n = size - j < kLanes<C> ? size - j : kLanes<C>;
            store(grads.row(chunk, k / 2) + j, interleave(low + j, high ? high + j : nullptr, n));
          }
        }
#endif
      } else {
        for (int64_t k = 0; k < depth; ++k) {
          std::memcpy(grads.row(chunk, k), grad_rows[k] + first, size * sizeof(C));
        }
      }
    }
    run_outer(grads, state_rows, H, depth, panel, w_hh, add);
    run_outer(grads, input_rows, I, depth, panel, w_ih, add);
  }
  if constexpr (kNarrow<S>) {
    narrow(static_cast<S*>(task.grad_w_hh) + begin * H, w_hh, units * H);
    narrow(static_cast<S*>(task.grad_w_ih) + begin * I, w_ih, units * I);
  }
  if (task.grad_b_ih) {
    const C* sum = bias.total();
    narrow(static_cast<S*>(task.grad_b_ih) + begin, sum, units);
    narrow(static_cast<S*>(task.grad_b_hh) + begin, sum, units);
  }
}

// grad_w_hh = grad_pre^T @ h_prev, grad_w_ih = grad_pre^T @ input, grad_b = sum(grad_pre), for a
// range of hidden units.
// Tile plan: blocks of kDepthBlock rows of all steps. A tile of units by a panel of columns is
//   summed in registers over the block and added to memory. grad_pre is copied (Columns); h_prev
//   and input are packed, as many panels at a time as fit. With pairs, two rows of the block are
//   one step of the sum, and grad_pre is copied in pairs as well.
// Sync plan: none; a unit's gradients need all rows' grad_pre, which must be complete.
// Limits: none.
// Why: one product over all steps runs at the speed of a matrix product; one a step does not.
template <typename S>
void weight_grad(const WeightGradTask& task, int64_t begin, int64_t end, void* scratch) {
  if (begin >= end) return;
  if constexpr (kHasPairs<S>) {
    if (task.plan->form == Form::kPackedPairs)
      return weight_grad_of<S, S>(task, begin, end, scratch);
  }
  weight_grad_of<S, typename Accumulate<S>::type>(task, begin, end, scratch);
}

}  // namespace
}  // namespace fastrnn::cpu
