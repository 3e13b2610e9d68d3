// One layer and direction back through time, for a thread's rows.
#pragma once

#include "cpu/rows.h"

namespace fastrnn::cpu {
namespace {

// Tile plan: as ForwardBlock, with w_hh not transposed and the steps walked back; grad_pre is kept
//   for all steps.
// Sync plan: as ForwardBlock, with grad_pre in the place of h.
// Limits: none.
// Why: as ForwardBlock; only what must go step by step is in the loop.
template <typename S>
class BackwardBlock {
  using C = typename Accumulate<S>::type;

 public:
  BackwardBlock(const BackwardTask& task, const Block& block, void* scratch)
      : task_(task),
        plan_(*task.plan),
        block_(block),
        H_(task.hidden_size),
        pairs_(layout_of(plan_.form, Layout::kNatural) == Layout::kPairs),
        slope_(task.leak == Leak::kRate ? task.kept : task.state) {
    Arena<C> arena(scratch, 0, H_, task.leak != Leak::kNone);
    grads_ = arena.take(block.rows * H_);
    states_ = arena.take(kNarrow<S> ? block.rows * H_ : 0);
    results_ = arena.take(kNarrow<S> ? block.rows * H_ : 0);
    zeros_ = arena.take_zeros(H_);
    for (int64_t i = 0; i < block.rows; ++i) initial_rows_[i] = zeros_;
    step_ = {.layout = layout_of(plan_.form, Layout::kNatural),
             .split = plan_.split,
             .added = grad_rows_,
             .state = state_rows_,
             .out = out_rows_,
             .columns = H_,
             .epilogue = grad_epilogue_of(task.nonlinearity)};
    if (task.leak != Leak::kNone) prepare_leak(arena);
  }

  void run() {
    for (int64_t s = block_.seq_len() - 1; s >= 0; --s) step(s);
    if (task_.grad_hx) find_grad_hx();
  }

 private:
  void* grad_pre_row(int64_t t, int64_t i) const {
    if (pairs_) return block_.row<S>(task_.grad_pre, t, i);
    return block_.row<C>(task_.grad_pre, t, i);
  }
  const S* grad_hn_row(int64_t i) const {
    return static_cast<const S*>(task_.grad_hn) + block_.original(i) * H_;
  }
  S* grad_hx_row(int64_t i) const {
    return static_cast<S*>(task_.grad_hx) + block_.original(i) * H_;
  }

  // Rows of the gradient that leaks back; grad_hn is where it comes from at a last step.
  void prepare_leak(Arena<C>& arena) {
    C* const carries = arena.take(block_.rows * H_);
    C* const grads = arena.take(kNarrow<S> ? block_.rows * H_ : 0);
    for (int64_t i = 0; i < block_.rows; ++i) {
      carry_rows_of_leak_[i] = carries + i * H_;
      leaky_grad_hn_[i] = zeros_;
      initial_carry_[i] = zeros_;
      if (task_.grad_hn)
        leaky_grad_hn_[i] = widened<S, C>(grad_hn_row(i), nullptr, grads + i * H_, H_);
    }
    step_.leak = {.form = task_.leak,
                  .alpha = static_cast<const C*>(task_.alpha),
                  .carried = carried_rows_,
                  .carry = carry_rows_of_leak_,
                  .kept = task_.grad_state.data ? grad_state_rows_ : nullptr};
  }

  void place_leak(int64_t t, int64_t i) {
    carried_rows_[i] = block_.goes_on(t, i)   ? carry_rows_of_leak_[i]
                       : block_.is_last(t, i) ? leaky_grad_hn_[i]
                                              : zeros_;
    if (task_.grad_state.data) grad_state_rows_[i] = block_.row<C>(task_.grad_state, t, i);
    if (block_.is_first(t, i)) initial_carry_[i] = carry_rows_of_leak_[i];
  }

  void step(int64_t s) {
    const int64_t t = block_.walk.time(s), n = block_.active(t);
    for (int64_t i = 0; i < n; ++i) {
      carry_rows_[i] = block_.goes_on(t, i) ? grad_pre_row(block_.walk.after(t), i) : zeros_;
      grad_rows_[i] = grad_row(t, i);
      const S* state = block_.row<const S>(slope_, t, i);
      if (task_.leak != Leak::kNone) place_leak(t, i);
      state_rows_[i] = widened<S, C>(state, nullptr, states_ + i * H_, H_);
      out_rows_[i] = pairs_ ? results_ + i * H_ : static_cast<C*>(grad_pre_row(t, i));
    }
    step_.terms[0] = {carry_rows_, H_, task_.w_hh, plan_.fetch_w_hh};
    turn(step_, plan_, t);
    fetch_ahead(s, n);
    run_products(s, t, n);
    wait(task_.share);
    for (int64_t i = 0; i < n; ++i) {
      if (pairs_) narrow(static_cast<S*>(grad_pre_row(t, i)), out_rows_[i], H_);
      if (block_.is_first(t, i)) initial_rows_[i] = grad_pre_row(t, i);
    }
    for (int64_t i = task_.share.part; i < n && task_.grad_gates.data; i += task_.share.parts)
      narrow(block_.row<S>(task_.grad_gates, t, i), out_rows_[i], H_);
  }

  // The gradient that comes from outside: of the output and, at a last step, of hn.
  const C* grad_row(int64_t t, int64_t i) {
    C* buffer = grads_ + i * H_;
    const C* grad = zeros_;
    if (task_.grad_output.data) {
      const S* row = block_.row<const S>(task_.grad_output, t, i);
      grad = widened<S, C>(row, nullptr, buffer, H_);
    }
    if (task_.grad_layer.data)
      grad = sum(buffer, grad, block_.row<const S>(task_.grad_layer, t, i));
    if (!task_.grad_hn || task_.leak != Leak::kNone || !block_.is_last(t, i)) return grad;
    return sum(buffer, grad, grad_hn_row(i));
  }
  const C* sum(C* buffer, const C* grad, const S* more) const {
    for (int64_t k = 0; k < H_; ++k) {
      C g;
      widen(&g, more + k, 1);
      buffer[k] = grad[k] + g;
    }
    return buffer;
  }

  // Let the products of step s fetch what the next one, a step earlier, reads and writes.
  void fetch_ahead(int64_t s, int64_t n) {
    const bool fetch = plan_.fetch_rows && s > 0;
    for (int64_t i = 0; i < n && fetch; ++i) {
      ahead_grads_[i] = grad_rows_[i] - block_.walk.stride(task_.grad_output);
      ahead_states_[i] = state_rows_[i] - block_.walk.stride(slope_);
      ahead_out_[i] = out_rows_[i] - block_.walk.stride(task_.grad_pre);
    }
    step_.ahead[0] = fetch && task_.grad_output.data ? ahead_grads_ : nullptr;
    step_.ahead[1] = fetch ? ahead_states_ : nullptr;
    step_.ahead[2] = fetch ? ahead_out_ : nullptr;
  }

  // Rows without a later step come last in a block, and take no product: 0 times inf would be NaN.
  // With resets, rows that go on are mixed with others: all take the product.
  void run_products(int64_t s, int64_t t, int64_t n) {
    int64_t going = block_.walk.steps.reset && s < block_.seq_len() - 1 ? n : 0;
    while (going < n && block_.goes_on(t, going)) ++going;
    run_product<S>(step_, going, task_.share);
    if (going == n) return;
    Product<C> ended = step_;
    ended.terms[0] = {};
    ended.added += going;
    ended.state += going;
    ended.out += going;
    for (auto& rows : ended.ahead) rows += rows ? going : 0;
    if (task_.leak != Leak::kNone) {
      ended.leak.carried += going;
      ended.leak.carry += going;
      if (ended.leak.kept) ended.leak.kept += going;
    }
    run_product<S>(ended, n - going, task_.share);
  }

  // From the grad_pre of each row's first step.
  void find_grad_hx() {
    C* result_rows[kBlockRows];
    for (int64_t i = 0; i < block_.rows; ++i) {
      if constexpr (kNarrow<S>) {
        result_rows[i] = results_ + i * H_;
      } else {
        result_rows[i] = grad_hx_row(i);
      }
    }
    Product<C> product{.layout = step_.layout,
                       .split = plan_.split,
                       .terms = {{initial_rows_, H_, task_.w_hh, plan_.fetch_w_hh}},
                       .out = result_rows,
                       .columns = H_};
    if (task_.leak != Leak::kNone) leak_to_hx(product, result_rows);
    run_product<S>(product, block_.rows, task_.share);
    wait(task_.share);
    if (task_.share.part > 0) return;
    for (int64_t i = 0; i < block_.rows; ++i) {
      if (i >= block_.present() && task_.grad_hn) {  // a row without a step hands hn's gradient on
        std::memcpy(grad_hx_row(i), grad_hn_row(i), H_ * sizeof(S));
      } else if constexpr (kNarrow<S>) {
        narrow(grad_hx_row(i), result_rows[i], H_);
      }
    }
  }

  // The state's gradient is what is wanted, not that of a pre-activation.
  void leak_to_hx(Product<C>& product, C* const* result_rows) {
    for (int64_t i = 0; i < block_.rows; ++i) {
      state_rows_[i] = zeros_;
      out_rows_[i] = grads_ + i * H_;
      if (!task_.hx) continue;
      const S* hx = static_cast<const S*>(task_.hx) + block_.original(i) * task_.hx_row_stride;
      state_rows_[i] = widened<S, C>(hx, nullptr, states_ + i * H_, H_);
    }
    product.state = state_rows_;
    product.out = out_rows_;
    product.epilogue = step_.epilogue;
    product.leak = step_.leak;
    product.leak.carried = initial_carry_;
    product.leak.carry = nullptr;
    product.leak.kept = result_rows;
  }

  const BackwardTask& task_;
  const Plan& plan_;
  const Block block_;
  const int64_t H_;
  const bool pairs_;
  const Sequence& slope_;  // of which the derivative is taken

  C *grads_, *states_, *zeros_;
  C* results_;  // in float, before they are rounded to 16 bits
  Product<C> step_;
  const void* initial_rows_[kBlockRows];  // grad_pre of the steps that start from hx
  const void* carry_rows_[kBlockRows];    // grad_pre of the step after
  const C *grad_rows_[kBlockRows], *state_rows_[kBlockRows];
  C* out_rows_[kBlockRows];
  const void *ahead_grads_[kBlockRows], *ahead_states_[kBlockRows], *ahead_out_[kBlockRows];
  // Of a leaky layer.
  const C *leaky_grad_hn_[kBlockRows], *initial_carry_[kBlockRows], *carried_rows_[kBlockRows];
  C *carry_rows_of_leak_[kBlockRows], *grad_state_rows_[kBlockRows];
};

}  // namespace
}  // namespace fastrnn::cpu
