// Kernels of one leaky step.
#include "cuda/leaky.h"
#include "cuda/step.cuh"

namespace fastrnn::cuda {
namespace {

template <typename C>
FASTRNN_DEVICE C alpha_of(const Leaking& leak, int d, int64_t j) {
  return leak.alpha[d] ? static_cast<const C*>(leak.alpha[d])[j] : static_cast<C>(leak.alpha_value);
}

template <typename S, typename C>
FASTRNN_DEVICE void store(const Sequence& to, int64_t at, C x) {
  if (to.data) narrow(static_cast<S*>(to.data) + at, x);
}

// Tile plan: a thread has one unit of one row of one direction, in every step: so the state that
//   leaks, and backward its gradient, pass from launch to launch through the thread's own element.
// Sync plan: none; the step before is another launch. Limits: none.
// Why: as the plain step's kernels. tanh is exact in 16 bits too, for the state is not rounded.
template <typename S>
FASTRNN_KERNEL(kThreads, 1)
void leaky_forward_kernel(const __grid_constant__ LeakyForwardStep leaky) {
  using C = Accumulate<S>;
  const ForwardStep& step = leaky.step;
  const ForwardRecurrence& r = step.recurrence;
  const int own = blockIdx.y;
  const ForwardDirection& d = r.direction[own];
  const Sequence& kept = leaky.leak.kept[own];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len, i = thread_number(), b = i / H, j = i % H;
  if (b >= step.num_rows) return;
  const int64_t t = d.reverse ? T - 1 - step.step : step.step, before = d.reverse ? t + 1 : t - 1;
  const int64_t length = row_length(rows, b);
  if (t >= length) {
    if (rows.start) return;
    store<S>(d.output, place(rows, d.output, t, b) + j, C(0));
    store<S>(d.copy, place(rows, d.copy, t, b) + j, C(0));
    store<S>(kept, place(rows, kept, t, b) + j, C(0));
    return;
  }
  const bool again = before >= 0 && before < length && is_cut(rows, t, before, b);
  C pre = widen(static_cast<const S*>(d.igates.data)[place(rows, d.igates, t, b) + j]);
  pre += load_or_zero<C, S>(d.b_ih, j) + load_or_zero<C, S>(d.b_hh, j);
  if (step.product[own] && !again)
    pre += sum_of<C>(step.product[own], step.parts, i, rows.batch * H);

  C* const state = static_cast<C*>(leaky.leaky_state[own]) + i;
  const C alpha = alpha_of<C>(leaky.leak, own, j), last = again ? C(0) : *state;
  const bool rate = leaky.leak.form == Leak::kRate;
  const C target = rate ? activate<C>(pre, r.nonlinearity) : pre;
  const C next = (1 - alpha) * last + alpha * target;
  const C h = rate ? next : activate<C>(next, r.nonlinearity);
  *state = next;
  store<S>(kept, place(rows, kept, t, b) + j, rate ? target : pre - last);
  store<S>(d.output, place(rows, d.output, t, b) + j, h);
  store<S>(d.copy, place(rows, d.copy, t, b) + j, h);
  if (step.state[own]) narrow(static_cast<S*>(step.state[own]) + i, h);
}

// As leaky_forward_kernel.
template <typename S>
FASTRNN_KERNEL(kThreads, 1)
void leaky_backward_kernel(const __grid_constant__ LeakyBackwardStep leaky) {
  using C = Accumulate<S>;
  const BackwardStep& step = leaky.step;
  const BackwardRecurrence& r = step.recurrence;
  const int own = blockIdx.y;
  const BackwardDirection& d = r.direction[own];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len, i = thread_number(), b = i / H, j = i % H;
  if (b >= step.num_rows) return;
  const int64_t t = d.reverse ? step.step : T - 1 - step.step, after = d.reverse ? t - 1 : t + 1;
  const int64_t length = row_length(rows, b);
  const bool here = t >= 0 && t < length, came = after >= 0 && after < length;
  const bool rate = leaky.leak.form == Leak::kRate;
  C* const carry = static_cast<C*>(leaky.carry[own]) + i;

  // To this state from the step after, or from hn: through the product, of an activated state, and
  // past it.
  C through = 0, past = 0;
  if (!came) {
    past = load_or_zero<C, S>(d.grad_hn, i);
  } else if (!here || !is_cut(rows, t, after, b)) {
    through = sum_of<C>(step.product[own], step.parts, i, rows.batch * H);
    past = *carry;
  }
  const bool ends = came ? !here : length == 0 && step.step == T;
  if (ends && step.grad_hx[own]) {
    const C h = load_or_zero<C, S>(leaky.hx[own], b * leaky.hx_row_stride + j);
    const C factor = rate ? C(1) : slope(h, r.nonlinearity);
    static_cast<C*>(step.grad_hx[own])[i] = through * factor + past;
  }
  if (t < 0 || t >= T || (!here && rows.start)) return;
  C grad_pre = 0;
  if (here) {
    if (d.grad_output.data) {
      const int64_t at = place(rows, d.grad_output, t, b) + j;
      through += widen(static_cast<const S*>(d.grad_output.data)[at]);
    }
    const Sequence& x = leaky.leak.kept[own];
    const C kept = x.data ? widen(static_cast<const S*>(x.data)[place(rows, x, t, b) + j]) : C(0);
    const C h = widen(static_cast<const S*>(d.output.data)[place(rows, d.output, t, b) + j]);
    const C alpha = alpha_of<C>(leaky.leak, own, j);
    const C factor = slope(rate ? kept : h, r.nonlinearity);
    const C grad = rate ? through + past : through * factor + past;  // of the state
    grad_pre = rate ? alpha * (grad * factor) : alpha * grad;
    *carry = (1 - alpha) * grad;
    if (leaky.grad_alpha[own]) {
      const S* const from = rate ? previous_state<S>(rows, d.reverse, d.output, leaky.hx[own],
                                                     leaky.hx_row_stride, t, b)
                                 : nullptr;
      static_cast<C*>(leaky.grad_alpha[own])[i] += grad * (kept - load_or_zero<C, S>(from, j));
    }
  }
  narrow(static_cast<S*>(d.grad_pre.data) + place(rows, d.grad_pre, t, b) + j, grad_pre);
}

}  // namespace

cudaError_t launch_leaky_forward_step(const LeakyForwardStep& leaky, cudaStream_t stream) {
  const ForwardRecurrence& r = leaky.step.recurrence;
  dim3 grid;
  if (!grid_for(leaky.step.num_rows * r.hidden_size, r.num_directions, &grid))
    return cudaErrorInvalidValue;
  return with_type(r.dtype, [&](auto type) {
    return launch(leaky_forward_kernel<decltype(type)>, {grid, kThreads, 0, stream}, leaky);
  });
}

cudaError_t launch_leaky_backward_step(const LeakyBackwardStep& leaky, cudaStream_t stream) {
  const BackwardRecurrence& r = leaky.step.recurrence;
  dim3 grid;
  if (!grid_for(leaky.step.num_rows * r.hidden_size, r.num_directions, &grid))
    return cudaErrorInvalidValue;
  return with_type(r.dtype, [&](auto type) {
    return launch(leaky_backward_kernel<decltype(type)>, {grid, kThreads, 0, stream}, leaky);
  });
}

}  // namespace fastrnn::cuda
