// One layer and direction for a thread's rows: the recurrence forward and back through time.
#pragma once

#include "cpu/kernels.h"
#include "cpu/product.h"

namespace fastrnn::cpu {
namespace {

template <typename S>
constexpr bool kNarrow = sizeof(S) == 2;  // storage narrower than its accumulation type

FASTRNN_INLINE int64_t original_row(const Steps& steps, int64_t i) {
  return steps.order ? steps.order[i] : i;
}

template <typename T>
FASTRNN_INLINE T* row_of(const Sequence& x, const Steps& steps, int64_t t, int64_t i) {
  T* data = static_cast<T*>(x.data);
  if (steps.start) return data + (steps.start[t] + i) * x.row_stride;
  return data + t * x.step_stride + original_row(steps, i) * x.row_stride;
}

FASTRNN_INLINE int64_t active_rows(const Steps& steps, int64_t t) {
  return steps.active ? steps.active[t] : steps.batch;
}

// The walk of one direction over the steps: which state a row comes from and which it goes to.
struct Walk {
  const Steps& steps;
  bool reverse;

  // The distance from a row of x, not packed, to the same row at the next step walked.
  int64_t stride(const Sequence& x) const { return reverse ? -x.step_stride : x.step_stride; }
  // Of the s-th step walked.
  int64_t time(int64_t s) const { return reverse ? steps.seq_len - 1 - s : s; }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
  bool present(int64_t t, int64_t i) const {
    return t >= 0 && t < steps.seq_len && i < active_rows(steps, t);
  }
  // A step between t and its neighbour in time; a sequence begins at the later of the two.
  bool cut(int64_t t, int64_t neighbour, int64_t i) const {
    if (!steps.reset) return false;
    const int64_t later = t > neighbour ? t : neighbour, row = original_row(steps, i);
    return steps.reset[later * steps.reset_step_stride + row * steps.reset_row_stride];
  }
  // What h_prev of row i at step t is, if not hx: a state of the walk, or zero.
  bool continues(int64_t t, int64_t i) const {
    return present(before(t), i) && !cut(t, before(t), i);
  }
  bool begins_anew(int64_t t, int64_t i) const {
    return present(before(t), i) && cut(t, before(t), i);
  }
  // Whether row i's state at step t is the h_prev of the next step.
  bool goes_on(int64_t t, int64_t i) const { return present(after(t), i) && !cut(t, after(t), i); }
};

FASTRNN_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// The scratch memory of a task of these sizes, dealt out from its start.
template <typename C>
class Arena {
 public:
  Arena(void* scratch, int64_t input_size, int64_t hidden_size)
      : next_(static_cast<C*>(scratch)),
        left_(task_scratch_bytes(kDtype, input_size, hidden_size)) {}
  C* take(int64_t n) {
    C* p = next_;
    next_ += padded(n);
    left_ -= padded(n) * int64_t{sizeof(C)};
    if (left_ < 0) __builtin_trap();  // task_scratch_bytes is wrong: better than a stray write
    return p;
  }

 private:
  static constexpr Dtype kDtype = sizeof(C) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
  C* next_;
  int64_t left_;
};

// A row as accumulation type: itself where storage is that type, else widened into the buffer;
// times the mask, if any.
template <typename S, typename C>
FASTRNN_INLINE const C* widened(const S* row, const S* mask, C* buffer, int64_t n) {
  if constexpr (!kNarrow<S>) {
    if (!mask) return row;
  }
  widen(buffer, row, n);
  for (int64_t k = 0; mask && k < n; ++k) {
    C m;
    widen(&m, mask + k, 1);
    S rounded;  // as the layer below hands it on
    narrow(&rounded, &(m *= buffer[k]), 1);
    widen(buffer + k, &rounded, 1);
  }
  return buffer;
}

// A row as a product takes it: of 16 bits for pairs, else widened. The buffer holds n of the
// accumulation type.
template <typename S, typename C>
FASTRNN_INLINE const void* operand(Layout layout, const S* row, const S* mask, C* buffer,
                                   int64_t n) {
  if (layout != Layout::kPairs) return widened<S, C>(row, mask, buffer, n);
  if (!mask) return row;
  widened<S, C>(row, mask, buffer, n);
  S* rounded = reinterpret_cast<S*>(buffer);
  for (int64_t k = 0; k < n; ++k)
    narrow(rounded + k, buffer + k, 1);  // never ahead of what is read
  return rounded;
}

inline Layout layout_of(Form form, Layout as_they_came) {
  return form == Form::kPacked        ? Layout::kPacked
         : form == Form::kPackedPairs ? Layout::kPairs
                                      : as_they_came;
}

template <typename S>
FASTRNN_INLINE const S* mask_row(const Sequence& mask, const Steps& steps, int64_t t, int64_t i) {
  return mask.data ? row_of<const S>(mask, steps, t, i) : nullptr;
}

FASTRNN_INLINE void wait(const Share& share) {
  if (share.parts > 1) share.wait(share.team);
}

// Tile plan: a block of up to kBlockRows rows runs through all steps. A step is a product of the
//   block's rows with the packed w_hh: a few rows by a panel of columns in registers at a time.
//   With enough rows the input projection joins that product; with few, it is made for a chunk of
//   steps at once, so that w_ih is read once a chunk. Either way an element sums bias, input terms
//   and state terms in this order, and the result is the same. Dot products with rows of weights
//   that are not packed sum in another order, so whether theirs are joined must not depend on how
//   many rows a thread has.
// Sync plan: none where a thread has all columns, for a row needs only its own past. Where columns
//   are shared, all wait at the end of a step: each has written its columns of h before any reads.
// Limits: none. h_prev is read from the output itself, or, where products take no rows of 16 bits,
//   from float copies of it.
// Why: with the projection, activation and time loop outside, memory and dispatch cost more than
//   the sums (benchmarks/test_overhead.py, benchmarks/test_kernels.py).
template <typename S>
void forward_block(const ForwardTask& task, int64_t begin, int64_t rows, void* scratch) {
  using C = typename Accumulate<S>::type;
  const Steps& steps = *task.steps;
  const Walk walk{steps, task.reverse};
  const int64_t T = steps.seq_len, H = task.hidden_size, I = task.input_size;
  const Plan& plan = *task.plan;
  const Layout layout = layout_of(plan.form, Layout::kTransposed);
  const bool fused = rows >= plan.fused_rows[task.above];
  const bool pairs = layout == Layout::kPairs;
  const Share& share = task.share;
  const int64_t chunk = fused ? 1 : kBlockRows / rows;

  Arena<C> arena(scratch, I, H);
  C* inputs = arena.take(kBlockRows * I);
  C* igates = arena.take(fused ? 0 : kBlockRows * padded(H));
  C* states[2] = {arena.take(kNarrow<S> ? rows * H : 0), arena.take(kNarrow<S> ? rows * H : 0)};
  C* initial = arena.take(kNarrow<S> ? rows * H : 0);
  C* zeros = arena.take(H);
  for (int64_t k = 0; k < H; ++k) zeros[k] = 0;

  const auto hx_row = [&](int64_t i) {
    return static_cast<const S*>(task.hx) + original_row(steps, begin + i) * task.hx_row_stride;
  };
  const auto hn_row = [&](int64_t i) {
    return static_cast<S*>(task.hn) + original_row(steps, begin + i) * H;
  };
  const auto count = [&](int64_t t) {
    return t >= 0 && t < T ? clamp(active_rows(steps, t) - begin, 0, rows) : 0;
  };
  const void* hx_rows[kBlockRows];
  for (int64_t i = 0; i < rows; ++i) {
    hx_rows[i] = task.hx ? operand<S, C>(layout, hx_row(i), nullptr, initial + i * H, H) : zeros;
  }

  const void* x_rows[kBlockRows];
  const C* gate_rows[kBlockRows];
  C* chunk_rows[kBlockRows];
  const void* h_rows[kBlockRows];
  C* out_rows[kBlockRows];
  const void *ahead_out[kBlockRows], *ahead_in[kBlockRows];
  Product<C> projection{.layout = layout,
                        .terms = {{x_rows, I, task.w_ih, plan.fetch_w_ih[task.above]}},
                        .bias = static_cast<const C*>(task.bias),
                        .out = chunk_rows,
                        .columns = H};
  Product<C> step{.layout = layout,
                  .split = plan.split,
                  .out = out_rows,
                  .columns = H,
                  .epilogue = epilogue_of(task.nonlinearity)};
  if (fused) {
    step.terms[0] = projection.terms[0];
    step.bias = projection.bias;
  }
  for (int64_t s0 = 0; s0 < T; s0 += chunk) {
    const int64_t s1 = s0 + chunk < T ? s0 + chunk : T;
    int64_t gathered = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = walk.time(s), n = count(t);
      for (int64_t i = 0; i < n; ++i, ++gathered) {
        x_rows[gathered] = operand<S, C>(layout, row_of<const S>(task.input, steps, t, begin + i),
                                         mask_row<S>(task.input_mask, steps, t, begin + i),
                                         inputs + gathered * I, I);
        if (!fused) gate_rows[gathered] = chunk_rows[gathered] = igates + gathered * padded(H);
      }
    }
    if (!fused) run<S>(projection, gathered, share);

    int64_t done = 0;  // of the chunk's rows
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = walk.time(s), n = count(t);
      for (int64_t i = 0; i < n; ++i) {
        if (walk.continues(t, begin + i)) {
          if (kNarrow<S> && !pairs) {
            h_rows[i] = states[(s + 1) & 1] + i * H;
          } else {
            h_rows[i] = row_of<const S>(task.output, steps, walk.before(t), begin + i);
          }
        } else {
          h_rows[i] = walk.begins_anew(t, begin + i) ? zeros : hx_rows[i];
        }
        if constexpr (kNarrow<S>) {
          out_rows[i] = states[s & 1] + i * H;
        } else {
          out_rows[i] = row_of<S>(task.output, steps, t, begin + i);
        }
      }
      const bool skip = s == 0 && task.skips_zeros;  // of every row, whichever thread has it
      step.terms[1] = {h_rows, skip ? 0 : H, task.w_hh, plan.fetch_w_hh};
      step.start = fused ? nullptr : gate_rows + done;
      step.back = t & 1;  // by time, not by the walk: the same for padded and packed sequences
      step.k_back = step.back != plan.opposed;
      const bool fetch = plan.fetch_rows && s + chunk < T;
      const bool fetch_in = fetch && I >= H;  // a tile fetches its columns
      for (int64_t i = 0; i < n && fetch; ++i) {
        ahead_out[i] = out_rows[i] + walk.stride(task.output);
        if (fetch_in)
          ahead_in[i] = row_of<const C>(task.input, steps, walk.time(s + chunk), begin + i);
      }
      step.ahead[0] = fetch ? ahead_out : nullptr;
      step.ahead[1] = fetch_in ? ahead_in : nullptr;
      run<S>(step, n, share);
      done += n;
      wait(share);
      for (int64_t i = share.part; i < n; i += share.parts) {
        S* out = row_of<S>(task.output, steps, t, begin + i);
        if constexpr (kNarrow<S>) {
          narrow(out, out_rows[i], H);
          if (!pairs) widen(out_rows[i], out, H);
        }
        if (task.copy.data)
          std::memcpy(row_of<S>(task.copy, steps, t, begin + i), out, H * sizeof(S));
        if (!walk.present(walk.after(t), begin + i)) std::memcpy(hn_row(i), out, H * sizeof(S));
      }
    }
  }
  for (int64_t i = share.part > 0 ? rows : count(0); i < rows; ++i) {  // rows without a step
    if (task.hx) {
      std::memcpy(hn_row(i), hx_row(i), H * sizeof(S));
    } else {
      std::memset(hn_row(i), 0, H * sizeof(S));
    }
  }
}

// Tile plan: as forward_block, with w_hh not transposed and the steps walked back; grad_pre is kept
//   for all steps.
// Sync plan: as forward_block, with grad_pre in the place of h.
// Limits: none.
// Why: as forward_block; only what must go step by step is in the loop.
template <typename S>
void backward_block(const BackwardTask& task, int64_t begin, int64_t rows, void* scratch) {
  using C = typename Accumulate<S>::type;
  const Steps& steps = *task.steps;
  const Walk walk{steps, task.reverse};
  const int64_t T = steps.seq_len, H = task.hidden_size;
  const Plan& plan = *task.plan;
  const Layout layout = layout_of(plan.form, Layout::kNatural);
  const bool pairs = layout == Layout::kPairs;
  const auto grad_pre_row = [&](int64_t t, int64_t i) -> void* {
    if (pairs) return row_of<S>(task.grad_pre, steps, t, begin + i);
    return row_of<C>(task.grad_pre, steps, t, begin + i);
  };
  const Share& share = task.share;

  Arena<C> arena(scratch, 0, H);
  C* grads = arena.take(rows * H);
  C* states = arena.take(kNarrow<S> ? rows * H : 0);
  C* results = arena.take(kNarrow<S> ? rows * H : 0);  // what becomes of 16 bits
  C* zeros = arena.take(H);
  for (int64_t k = 0; k < H; ++k) zeros[k] = 0;
  const void* initial_rows[kBlockRows];  // grad_pre of the steps that start from hx
  for (int64_t i = 0; i < rows; ++i) initial_rows[i] = zeros;
  const auto grad_hn_row = [&](int64_t i) {
    return static_cast<const S*>(task.grad_hn) + original_row(steps, begin + i) * H;
  };

  const void* carry_rows[kBlockRows];
  const C* grad_rows[kBlockRows];
  const C* state_rows[kBlockRows];
  C* out_rows[kBlockRows];
  const void *ahead_grads[kBlockRows], *ahead_states[kBlockRows], *ahead_out[kBlockRows];
  Product<C> step{.layout = layout,
                  .split = plan.split,
                  .added = grad_rows,
                  .state = state_rows,
                  .out = out_rows,
                  .columns = H,
                  .epilogue = grad_epilogue_of(task.nonlinearity)};
  for (int64_t s = T - 1; s >= 0; --s) {
    const int64_t t = walk.time(s), n = clamp(active_rows(steps, t) - begin, 0, rows);
    for (int64_t i = 0; i < n; ++i) {
      carry_rows[i] = walk.goes_on(t, begin + i) ? grad_pre_row(walk.after(t), i) : zeros;
      const C* grad = zeros;
      if (task.grad_output.data) {
        const S* row = row_of<const S>(task.grad_output, steps, t, begin + i);
        grad = widened<S, C>(row, nullptr, grads + i * H, H);
      }
      if (task.grad_hn && !walk.present(walk.after(t), begin + i)) {
        C* sum = grads + i * H;
        for (int64_t k = 0; k < H; ++k) {
          C g;
          widen(&g, grad_hn_row(i) + k, 1);
          sum[k] = grad[k] + g;
        }
        grad = sum;
      }
      grad_rows[i] = grad;
      state_rows[i] = widened<S, C>(row_of<const S>(task.state, steps, t, begin + i), nullptr,
                                    states + i * H, H);
      out_rows[i] = pairs ? results + i * H : static_cast<C*>(grad_pre_row(t, i));
    }
    // Rows that have no later step are the last ones, and take no product: 0 times inf would be
    // NaN.
    int64_t going = steps.reset && s < T - 1 ? n : 0;
    while (going < n && walk.goes_on(t, begin + going)) ++going;
    step.terms[0] = {carry_rows, H, task.w_hh, plan.fetch_w_hh};
    step.back = t & 1;
    step.k_back = step.back != plan.opposed;
    const bool fetch = plan.fetch_rows && s > 0;
    for (int64_t i = 0; i < n && fetch; ++i) {
      ahead_grads[i] = grad_rows[i] - walk.stride(task.grad_output);
      ahead_states[i] = state_rows[i] - walk.stride(task.state);
      ahead_out[i] = out_rows[i] - walk.stride(task.grad_pre);
    }
    step.ahead[0] = fetch && task.grad_output.data ? ahead_grads : nullptr;
    step.ahead[1] = fetch ? ahead_states : nullptr;
    step.ahead[2] = fetch ? ahead_out : nullptr;
    run<S>(step, going, share);
    if (going < n) {
      Product<C> ended = step;
      ended.terms[0] = {};
      ended.added += going;
      ended.state += going;
      ended.out += going;
      for (auto& rows : ended.ahead) rows += rows ? going : 0;
      run<S>(ended, n - going, share);
    }
    wait(share);
    for (int64_t i = 0; i < n; ++i) {
      if (pairs) narrow(static_cast<S*>(grad_pre_row(t, i)), out_rows[i], H);
      if (!walk.present(walk.before(t), begin + i)) initial_rows[i] = grad_pre_row(t, i);
    }
  }
  if (!task.grad_hx) return;
  C* result_rows[kBlockRows];
  for (int64_t i = 0; i < rows; ++i) {
    if constexpr (kNarrow<S>) {
      result_rows[i] = results + i * H;
    } else {
      result_rows[i] = static_cast<S*>(task.grad_hx) + original_row(steps, begin + i) * H;
    }
  }
  run<S>(Product<C>{.layout = layout,
                    .split = plan.split,
                    .terms = {{initial_rows, H, task.w_hh, plan.fetch_w_hh}},
                    .out = result_rows,
                    .columns = H},
         rows, share);
  wait(share);
  if (share.part > 0) return;
  const int64_t present = T > 0 ? clamp(active_rows(steps, 0) - begin, 0, rows) : 0;
  for (int64_t i = 0; i < rows; ++i) {
    S* out = static_cast<S*>(task.grad_hx) + original_row(steps, begin + i) * H;
    if (i >= present && task.grad_hn) {  // a row without a step hands hn's gradient on
      std::memcpy(out, grad_hn_row(i), H * sizeof(S));
    } else if constexpr (kNarrow<S>) {
      narrow(out, result_rows[i], H);
    }
  }
}

template <typename S, typename Task, void (*block)(const Task&, int64_t, int64_t, void*)>
void for_blocks(const Task& task, int64_t begin, int64_t end, void* scratch) {
  const int64_t blocks = (end - begin + kBlockRows - 1) / kBlockRows;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t rows = (end - begin + blocks - i - 1) / (blocks - i);
    block(task, begin, rows, scratch);
    begin += rows;
  }
}

}  // namespace
}  // namespace fastrnn::cpu
