// The gradients that are products over all steps at once: of a layer's input, and of its weights.
#pragma once

#include "cpu/layer.h"

namespace fastrnn::cpu {
namespace {

// grad_input = sum over directions of grad_pre @ w_ih, kBlockRows rows of all steps at a time.
template <typename S>
void input_grad(const InputGradTask& task, int64_t begin, int64_t end, void* scratch) {
  using C = typename Accumulate<S>::type;
  const Steps& steps = *task.steps;
  const int64_t H = task.hidden_size, I = task.input_size;
  C* results = static_cast<C*>(scratch);
  const bool direct = !kNarrow<S> || task.grad_input_accumulates;
  const C* rows[2][kBlockRows];
  C* out_rows[kBlockRows];
  int64_t times[kBlockRows], indices[kBlockRows];
  int64_t n = 0;
  const auto flush = [&] {
    using Term = typename Product<C>::Term;
    const Term first{rows[0], H, static_cast<const C*>(task.w_ih[0])};
    const Term second{rows[1], task.num_directions == 2 ? H : 0, static_cast<const C*>(task.w_ih[1])};
    run(Product<C>{first, second, nullptr, nullptr, nullptr, out_rows, I, Epilogue::kStore}, n);
    for (int64_t r = 0; r < n; ++r) {
      if (const S* mask = mask_row<S>(task.input_mask, steps, times[r], indices[r])) {
        for (int64_t k = 0; k < I; ++k) {
          C m;
          widen(&m, mask + k, 1);
          out_rows[r][k] *= m;
        }
      }
      if (!direct) narrow(row_of<S>(task.grad_input, steps, times[r], indices[r]), out_rows[r], I);
    }
    n = 0;
  };
  for (int64_t t = 0; t < steps.seq_len; ++t) {
    const int64_t last = clamp(active_rows(steps, t), begin, end);
    for (int64_t i = begin; i < last; ++i) {
      times[n] = t;
      indices[n] = i;
      for (int d = 0; d < task.num_directions; ++d) rows[d][n] = row_of<const C>(task.grad_pre[d], steps, t, i);
      out_rows[n] = direct ? row_of<C>(task.grad_input, steps, t, i) : results + n * padded(I);
      if (++n == kBlockRows) flush();
    }
  }
  flush();
}

// grad_w_hh = grad_pre^T @ h_prev, grad_w_ih = grad_pre^T @ input, grad_b = sum(grad_pre), for a range of hidden units.
// Tile plan: blocks of kDepthBlock rows of all steps; grad_pre packed by tiles of units, h_prev and input by panels of
//   columns; a tile of units by a panel of columns is summed in registers over the block and added to memory.
// Sync plan: none; a unit's gradients need all rows' grad_pre, which must be complete. Limits: none.
template <typename S>
void weight_grad(const WeightGradTask& task, int64_t begin, int64_t end, void* scratch) {
  using C = typename Accumulate<S>::type;
  const Steps& steps = *task.steps;
  const Walk walk{steps, task.reverse};
  const int64_t H = task.hidden_size, I = task.input_size, units = end - begin;
  if (units <= 0) return;

  Arena<C> arena{static_cast<C*>(scratch)};
  C* grads = arena.take(kDepthBlock * units);
  C* states = arena.take(kDepthBlock * padded(H));
  C* inputs = arena.take(kDepthBlock * padded(I));
  C* bias = arena.take(units);
  C* row = arena.take(H > I ? H : I);
  C* w_hh = kNarrow<S> ? arena.take(units * H) : static_cast<C*>(task.grad_w_hh) + begin * H;
  C* w_ih = kNarrow<S> ? arena.take(units * I) : static_cast<C*>(task.grad_w_ih) + begin * I;
  for (int64_t j = 0; j < units; ++j) bias[j] = 0;
  for (int64_t k = 0; k < H; ++k) row[k] = 0;

  const auto pack_row = [](C* panels_of_block, const C* from, int64_t columns, int64_t k, int64_t depth) {
    const Panels<C> panels(columns);
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t column = panels.begin(p) * kLanes<C>, width = panels.width(p) * kLanes<C>;
      const int64_t inside = columns - column < width ? columns - column : width;
      C* to = panels_of_block + column * depth + k * width;
      for (int64_t c = 0; c < inside; ++c) to[c] = from[c + column];
      for (int64_t c = inside; c < width; ++c) to[c] = 0;
    }
  };

  int64_t t = 0, i = 0;  // the next row
  const auto skip_empty = [&] {
    while (t < steps.seq_len && i >= active_rows(steps, t)) {
      ++t;
      i = 0;
    }
  };
  bool add = false;
  for (skip_empty(); t < steps.seq_len || !add; add = true) {
    int64_t times[kDepthBlock], indices[kDepthBlock];
    int64_t depth = 0;
    for (; depth < kDepthBlock && t < steps.seq_len; skip_empty()) {
      times[depth] = t;
      indices[depth++] = i++;
    }
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t tk = times[k], ik = indices[k];
      const C* grad = row_of<const C>(task.grad_pre, steps, tk, ik) + begin;
      for (int64_t j = 0; j < units; ++j) {
        bias[j] += grad[j];
        const int64_t tile = j / kOuterRows * kOuterRows;
        const int64_t tile_rows = units - tile < kOuterRows ? units - tile : kOuterRows;
        grads[tile * depth + k * tile_rows + j - tile] = grad[j];
      }
      const S* h = nullptr;
      if (walk.continues(tk, ik)) {
        h = row_of<const S>(task.state, steps, walk.before(tk), ik);
      } else if (task.hx) {
        h = static_cast<const S*>(task.hx) + original_row(steps, ik) * task.hx_row_stride;
      }
      if (h) {
        pack_row(states, widened<S, C>(h, nullptr, row, H), H, k, depth);
      } else {
        for (int64_t c = 0; c < H; ++c) row[c] = 0;
        pack_row(states, row, H, k, depth);
      }
      const C* x = widened<S, C>(row_of<const S>(task.input, steps, tk, ik),
                                 mask_row<S>(task.input_mask, steps, tk, ik), row, I);
      pack_row(inputs, x, I, k, depth);
    }
    run_outer(grads, units, states, H, depth, w_hh, H, add);
    run_outer(grads, units, inputs, I, depth, w_ih, I, add);
  }
  if constexpr (kNarrow<S>) {
    narrow(static_cast<S*>(task.grad_w_hh) + begin * H, w_hh, units * H);
    narrow(static_cast<S*>(task.grad_w_ih) + begin * I, w_ih, units * I);
  }
  if (task.grad_b_ih) {
    narrow(static_cast<S*>(task.grad_b_ih) + begin, bias, units);
    narrow(static_cast<S*>(task.grad_b_hh) + begin, bias, units);
  }
}

}  // namespace
}  // namespace fastrnn::cpu
