#include "cuda/steps.h"

#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <array>

#include "cuda/leaky.h"

namespace fastrnn::cuda {
namespace {

// Where all rows walk all steps, h_prev is the output of the step before; else `last` [D, B, H]
// holds it, which stands still beyond a row's end. It ends as the last state of each row.
template <typename Launch>
void walk_forward(const Call& call, const Layer& layer, const ForwardRecurrence& r,
                  const Tensor& last, const Launch& launch) {
  const Shape& s = call.shape;
  const int64_t T = s.seq_len, B = s.batch, H = s.hidden_size, D = s.num_directions;
  const bool uniform = call.uniform();
  ForwardStep step{};
  step.recurrence = r;
  step.parts = parts_of(B, H, H, call.context.device.multiprocessors);
  const Tensor sums = call.empty({D, step.parts, B, H}, call.accumulation_type());
  const Products products(call.input->device(), call.context.tf32);
  const auto multiply_state = [&](Matrix& product, const Matrix& state, const Matrix& w) {
    products.multiply_in_parts(product.some_rows(0, state.rows), step.parts, B * H, state, w);
  };
  std::vector<Matrix> hx, state, h, product, w_hh;
  for (int64_t d = 0; d < D; ++d) {
    const int64_t index = layer.first + d;
    w_hh.push_back(Matrix(call.weight(index, 1)).transposed());
    h.emplace_back(call.direction(layer.h, d));
    state.emplace_back(last[d]);
    product.emplace_back(sums[d][0]);
    if (call.hx->defined()) hx.emplace_back((*call.hx)[index]);
    if (!uniform) call.hx->defined() ? last[d].copy_((*call.hx)[index]) : last[d].zero_();
  }
  for (int64_t i = 0; i < T; ++i) {
    step.step = i;
    step.num_rows = 0;
    for (int64_t d = 0; d < D; ++d) {
      const bool reverse = r.direction[d].reverse;
      const int64_t t = reverse ? T - 1 - i : i, before = reverse ? t + 1 : t - 1;
      const int64_t count = call.rows_there(t);
      if (count > step.num_rows) step.num_rows = count;
      const bool first = i == 0;
      step.product[d] = product[d].data;
      if (first && !call.hx->defined()) {
        step.product[d] = nullptr;
      } else if (uniform) {
        multiply_state(product[d], first ? hx[d] : call.rows_at(h[d], before, count), w_hh[d]);
      } else {
        multiply_state(product[d], state[d].some_rows(0, count), w_hh[d]);
      }
      step.state[d] = uniform && i < T - 1 ? nullptr : state[d].data;
    }
    if (step.num_rows > 0) launch(step);
  }
}

template <typename Launch>
void walk_backward(const Call& call, const Layer& layer, const BackwardRecurrence& r,
                   const Tensor& grad_hx, const Launch& launch) {
  const Shape& s = call.shape;
  const int64_t T = s.seq_len, B = s.batch, H = s.hidden_size, D = s.num_directions;
  const bool want_hx = grad_hx.defined();
  BackwardStep step{};
  step.recurrence = r;
  step.parts = parts_of(B, H, H, call.context.device.multiprocessors);
  const Tensor sums = call.empty({D, step.parts, B, H}, call.accumulation_type());
  const Products products(call.input->device(), call.context.tf32);
  std::vector<Matrix> grad_pre, product, w_hh;
  Tensor wide_grad_hx;
  if (want_hx) {
    wide_grad_hx = call.is_narrow() ? call.empty({D, B, H}, call.accumulation_type())
                                    : grad_hx.narrow(0, layer.first, D);
  }
  for (int64_t d = 0; d < D; ++d) {
    w_hh.emplace_back(call.weight(layer.first + d, 1));
    grad_pre.emplace_back(call.direction(layer.grad_pre, d));
    product.emplace_back(sums[d][0]);
    step.product[d] = product[d].data;
    step.grad_hx[d] = want_hx ? wide_grad_hx[d].mutable_data_ptr() : nullptr;
  }
  for (int64_t i = 0; i < T + (want_hx ? 1 : 0); ++i) {
    step.step = i;
    step.num_rows = i == T ? B : 0;
    for (int64_t d = 0; d < D; ++d) {
      const bool reverse = r.direction[d].reverse;
      const int64_t t = reverse ? i : T - 1 - i, after = reverse ? t - 1 : t + 1;
      const int64_t came = call.rows_there(after);
      step.num_rows = std::max({step.num_rows, call.rows_there(t), came});
      if (came > 0)
        products.multiply_in_parts(product[d].some_rows(0, came), step.parts, B * H,
                                   call.rows_at(grad_pre[d], after, came), w_hh[d]);
    }
    if (step.num_rows > 0) launch(step);
  }
  if (want_hx && call.is_narrow()) grad_hx.narrow(0, layer.first, D).copy_(wide_grad_hx);
}

Leaking leaking_of(const Call& call, const Extended& extended, const Layer& layer) {
  Leaking leak{call.leak, extended.alpha_value, {}, {}};
  for (int64_t d = 0; d < call.shape.num_directions; ++d) {
    if (extended.alpha.defined()) leak.alpha[d] = extended.alpha[layer.first + d].const_data_ptr();
    if (layer.kept.defined()) leak.kept[d] = call.dense(call.direction(layer.kept, d));
  }
  return leak;
}

// The state that leaks is in the accumulation type: see rnn.h.
void leaky_forward(const Call& call, const Extended& extended, const Layer& layer,
                   const ForwardRecurrence& r, const Tensor& hn) {
  const Shape& s = call.shape;
  const std::array sizes{s.num_directions, s.batch, s.hidden_size};
  const Tensor activated = call.empty(sizes),
               state = call.is_narrow() ? call.empty(sizes, call.accumulation_type()) : hn;
  if (extended.hx.defined()) {
    state.copy_(extended.hx.narrow(0, layer.first, s.num_directions));
  } else {
    state.zero_();
  }
  LeakyForwardStep leaky{{}, leaking_of(call, extended, layer), {}};
  for (int64_t d = 0; d < s.num_directions; ++d) leaky.leaky_state[d] = state[d].mutable_data_ptr();
  walk_forward(call, layer, r, activated, [&](const ForwardStep& step) {
    leaky.step = step;
    check_launch(launch_leaky_forward_step(leaky, call.context.stream), "leaky_forward_kernel", s);
  });
  if (call.is_narrow()) hn.copy_(state);
}

void leaky_backward(const Call& call, const Extended& extended, const Layer& layer,
                    const BackwardRecurrence& r, const Tensor& grad_hx) {
  const Shape& s = call.shape;
  const std::array sizes{s.num_directions, s.batch, s.hidden_size};
  const bool want_alpha = extended.grad_alpha.defined(), has_hx = call.hx->defined();
  const Tensor carry = call.empty(sizes, call.accumulation_type()),
               grad_alpha = want_alpha ? at::zeros(sizes, carry.options()) : Tensor();
  LeakyBackwardStep leaky{{}, leaking_of(call, extended, layer), {}, 0, {}, {}};
  if (has_hx) leaky.hx_row_stride = call.hx->stride(1);
  for (int64_t d = 0; d < s.num_directions; ++d) {
    if (has_hx) leaky.hx[d] = (*call.hx)[layer.first + d].const_data_ptr();
    leaky.carry[d] = carry[d].mutable_data_ptr();
    if (want_alpha) leaky.grad_alpha[d] = grad_alpha[d].mutable_data_ptr();
  }
  walk_backward(call, layer, r, grad_hx, [&](const BackwardStep& step) {
    leaky.step = step;
    check_launch(launch_leaky_backward_step(leaky, call.context.stream), "leaky_backward_kernel",
                 s);
  });
  if (!want_alpha) return;
  Tensor sums = extended.grad_alpha.narrow(0, layer.first, s.num_directions);
  at::sum_out(sums, grad_alpha, {1});
}

}  // namespace

void forward_by_steps(const Call& call, const Extended& extended, const Layer& layer,
                      const ForwardRecurrence& r, const Tensor& hn) {
  const Tensor own = hn.narrow(0, layer.first, call.shape.num_directions);
  if (call.leak != Leak::kNone) return leaky_forward(call, extended, layer, r, own);
  walk_forward(call, layer, r, own, [&](const ForwardStep& step) {
    check_launch(launch_forward_step(step, call.context.stream), "forward_step_kernel", call.shape);
  });
}

void backward_by_steps(const Call& call, const Extended& extended, const Layer& layer,
                       const BackwardRecurrence& r, const Tensor& grad_hx) {
  if (call.leak != Leak::kNone) return leaky_backward(call, extended, layer, r, grad_hx);
  walk_backward(call, layer, r, grad_hx, [&](const BackwardStep& step) {
    check_launch(launch_backward_step(step, call.context.stream), "backward_step_kernel",
                 call.shape);
  });
}

}  // namespace fastrnn::cuda
