// A call from start to end: for each layer the input's product by cuBLAS, and the recurrence in one
// launch or step by step; backward also the gradients of the weights.
#include "cuda/stack.h"

#include <ATen/ops/cat.h>

#include "cuda/guard.h"
#include "cuda/launchers.h"
#include "cuda/layer.h"

namespace fastrnn::cuda {

Problem problem_of(Dtype dtype, const Shape& s, const Context& context, bool has_hx,
                   bool backward) {
  return {.dtype = dtype,
          .backward = backward,
          .tf32 = context.tf32,
          .seq_len = s.seq_len,
          .batch = s.batch,
          .hidden_size = s.hidden_size,
          .num_directions = static_cast<int>(s.num_directions),
          .has_hx = has_hx};
}

void Call::choose_kernel() {
  const Problem problem = problem_of(dtype, shape, context, hx->defined(), backward);
  choice = allowed_choice(problem, context, /*torch_can_serve=*/false);
}

Tensor Call::input_weights(int64_t layer) const {
  const int64_t D = shape.num_directions;
  return D == 1 ? weight(layer, 0) : at::cat({weight(layer * D, 0), weight(layer * D + 1, 0)});
}

namespace {

template <typename Direction>
Recurrence<Direction> recurrence_of(const Call& call) {
  Recurrence<Direction> r{};
  r.dtype = call.dtype;
  r.nonlinearity = call.shape.nonlinearity;
  r.tf32 = call.context.tf32;
  r.hidden_size = call.shape.hidden_size;
  r.rows = call.rows;
  r.num_directions = static_cast<int>(call.shape.num_directions);
  return r;
}

// A step's rows of a matrix of all rows.
Matrix rows_at(const Call& call, const Matrix& x, int64_t t, int64_t count) {
  return x.some_rows(call.packed ? call.start[t] : t * call.shape.batch, count);
}
int64_t rows_there(const Call& call, int64_t t) {
  if (t < 0 || t >= call.shape.seq_len) return 0;
  return call.packed ? call.active[t] : call.shape.batch;
}

// A product and a kernel for each step. Where all rows walk all steps, h_prev is the output of the
// step before; else hn holds it, which stands still beyond a row's end.
void forward_by_steps(const Call& call, const Layer& layer, const ForwardRecurrence& r,
                      const Tensor& hn) {
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
    state.emplace_back(hn[index]);
    product.emplace_back(sums[d][0]);
    if (call.hx->defined()) hx.emplace_back((*call.hx)[index]);
    if (!uniform) call.hx->defined() ? hn[index].copy_((*call.hx)[index]) : hn[index].zero_();
  }
  for (int64_t i = 0; i < T; ++i) {
    step.step = i;
    step.num_rows = 0;
    for (int64_t d = 0; d < D; ++d) {
      const bool reverse = r.direction[d].reverse;
      const int64_t t = reverse ? T - 1 - i : i, before = reverse ? t + 1 : t - 1;
      const int64_t count = rows_there(call, t);
      if (count > step.num_rows) step.num_rows = count;
      const bool first = i == 0;
      step.product[d] = product[d].data;
      if (first && !call.hx->defined()) {
        step.product[d] = nullptr;
      } else if (uniform) {
        multiply_state(product[d], first ? hx[d] : rows_at(call, h[d], before, count), w_hh[d]);
      } else {
        multiply_state(product[d], state[d].some_rows(0, count), w_hh[d]);
      }
      step.state[d] = uniform && i < T - 1 ? nullptr : state[d].data;
    }
    if (step.num_rows > 0)
      check_launch(launch_forward_step(step, call.context.stream), "forward_step_kernel", s);
  }
}

void backward_by_steps(const Call& call, const Layer& layer, const BackwardRecurrence& r,
                       const Tensor& grad_hx) {
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
      const int64_t came = rows_there(call, after);
      step.num_rows = std::max({step.num_rows, rows_there(call, t), came});
      if (came > 0)
        products.multiply_in_parts(product[d].some_rows(0, came), step.parts, B * H,
                                   rows_at(call, grad_pre[d], after, came), w_hh[d]);
    }
    if (step.num_rows > 0)
      check_launch(launch_backward_step(step, call.context.stream), "backward_step_kernel", s);
  }
  if (want_hx && call.is_narrow()) grad_hx.narrow(0, layer.first, D).copy_(wide_grad_hx);
}

// Whether a launch failed because the device, as this process has it, lacks what the kernel needs:
// a part of a GPU may hold no cluster.
bool is_refusal(cudaError_t error) {
  return error == cudaErrorInvalidClusterSize || error == cudaErrorLaunchOutOfResources ||
         error == cudaErrorInvalidConfiguration || error == cudaErrorNotSupported;
}

// Runs the recurrence as chosen; false if that is by steps.
template <typename Direction, typename Launchers>
bool run_in_one_launch(Call& call, Recurrence<Direction>& r, const Launchers& launchers) {
  const Context& context = call.context;
  const Choice choice = call.choice;
  auto* const launcher = launchers(choice.kernel);
  if (!launcher) return false;
  if (choice.rows > 1) call.sort_rows();
  r.rows.order = call.rows.order;
  const Variant variant{choice, r.dtype};
  if (context.guard) r.gave_up = context.guard->told(variant, call.backward);
  const cudaError_t error = launcher(r, choice, context.stream);
  if (context.guard && context.forced.empty() && is_refusal(error) &&
      !is_capturing(context.stream)) {
    forget_error();
    context.guard->refuse(variant, text_of(error));
    call.choose_kernel();  // by steps now
    return run_in_one_launch(call, r, launchers);
  }
  if (error != cudaSuccess) check_launch(error, name_of(choice).c_str(), call.shape);
  return true;
}

// Runs a layer from igates, which stand in h, to h; copy: where h goes as well, or undefined.
void forward_layer(Call& call, const Layer& layer, const Tensor& copy, const Tensor& hn) {
  auto r = recurrence_of<ForwardDirection>(call);
  for (int d = 0; d < r.num_directions; ++d) {
    const int64_t index = layer.first + d;
    const Sequence h = call.dense(call.direction(layer.h, d));
    r.direction[d] = {.reverse = d == 1,
                      .w_hh = call.weight(index, 1).const_data_ptr(),
                      .b_ih = call.bias(index, 0),
                      .b_hh = call.bias(index, 1),
                      .hx = call.hx->defined() ? (*call.hx)[index].const_data_ptr() : nullptr,
                      .hx_row_stride = call.hx->defined() ? call.hx->stride(1) : 0,
                      .igates = h,
                      .output = h,
                      .copy = copy.defined() ? call.dense(call.direction(copy, d)) : Sequence{},
                      .hn = hn[index].mutable_data_ptr()};
  }
  if (!run_in_one_launch(call, r, forward_launcher)) forward_by_steps(call, layer, r, hn);
}

void backward_layer(Call& call, const Layer& layer, Sequence grad_output, const Tensor& grad_hn,
                    const Tensor& grad_hx) {
  auto r = recurrence_of<BackwardDirection>(call);
  for (int d = 0; d < r.num_directions; ++d) {
    const int64_t index = layer.first + d;
    Sequence grad = grad_output;
    if (grad.data) {
      grad.data = static_cast<char*>(grad.data) +
                  d * r.hidden_size * static_cast<int64_t>(call.input->element_size());
    }
    r.direction[d] = {.reverse = d == 1,
                      .w_hh = call.weight(index, 1).const_data_ptr(),
                      .output = call.dense(call.direction(layer.h, d)),
                      .grad_output = grad,
                      .grad_hn = grad_hn.defined() ? grad_hn[index].const_data_ptr() : nullptr,
                      .grad_pre = call.dense(call.direction(layer.grad_pre, d)),
                      .grad_hx = grad_hx.defined() ? grad_hx[index].mutable_data_ptr() : nullptr};
  }
  if (!run_in_one_launch(call, r, backward_launcher)) backward_by_steps(call, layer, r, grad_hx);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward(const Context& context, FASTRNN_ARGUMENTS, bool save) {
  Call call(context, /*backward=*/false, FASTRNN_PASS);
  const Shape& s = call.shape;
  const int64_t L = s.num_layers, D = s.num_directions, features = s.features();
  const Tensor output = call.empty({s.rows, features});
  const Tensor hn = call.empty({L * D, s.batch, s.hidden_size});
  const Tensor saved = call.empty({save ? L : 0, s.rows, features});
  Tensor x = s.rows > 0 ? call.flat_input() : Tensor();
  for (int64_t layer = 0; layer < L && s.rows > 0; ++layer) {
    const bool top = layer == L - 1;
    if (layer > 0 && dropout_mask) x = x.mul(call.mask(layer - 1));
    const Tensor h = save ? saved[layer] : top ? output : call.empty({s.rows, features});
    multiply(Matrix(h), Matrix(x), Matrix(call.input_weights(layer)).transposed(), context.tf32);
    forward_layer(call, {h, {}, layer * D}, save && top ? output : Tensor(), hn);
    x = h;
  }
  if (call.packed) return {output, hn, saved};
  const Tensor shaped = output.view({s.seq_len, s.batch, features});
  return {batch_first ? shaped.transpose(0, 1) : shaped, hn, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> backward(
    const Context& context, const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const Tensor& saved, FASTRNN_ARGUMENTS, bool want_input, bool want_hx, bool want_weights) {
  Call call(context, /*backward=*/true, FASTRNN_PASS);
  const Shape& s = call.shape;
  const int64_t L = s.num_layers, D = s.num_directions, features = s.features();
  const Gradients grads(call, grad_output, grad_hn, saved, L);
  const Tensor grad_input = want_input ? call.empty(input.sizes()) : call.empty({0});
  Tensor grad_hx;
  if (want_hx) grad_hx = call.empty({L * D, s.batch, s.hidden_size});
  std::vector<Tensor> grad_weights;
  for (int64_t i = 0; want_weights && i < static_cast<int64_t>(weights.size()); ++i)
    grad_weights.push_back(call.empty(weights[i].sizes()));
  if (s.rows == 0) {
    grad_input.zero_();
    for (Tensor& grad : grad_weights) grad.zero_();
    return {grad_input, want_hx ? grad_hx : call.empty({0}), std::move(grad_weights)};
  }

  Tensor handed_down;  // [rows, D*H], the gradient of the output of the layer below
  Sequence grad = grad_output ? call.sequence(*grads.output) : Sequence{};
  for (int64_t layer = L - 1; layer >= 0; --layer) {
    const bool bottom = layer == 0;
    const Tensor grad_pre =
        handed_down.defined() ? handed_down : call.empty({s.rows, features});  // in its place
    const Layer own{saved[layer], grad_pre, layer * D};
    backward_layer(call, own, grad, *grads.hn, grad_hx);
    const Tensor mask = bottom ? Tensor() : call.mask(layer - 1);
    if (want_weights) {
      Input x{bottom ? Tensor() : saved[layer - 1], bottom ? s.input_size : features};
      if (mask.defined()) x.below = x.below.mul(mask);
      weight_grads(call, own, x, grad_weights);
    }
    if (bottom && !want_input) break;
    // Straight into grad_input where that is [rows, I].
    const bool direct = bottom && !batch_first && !call.packed;
    const Tensor to = direct ? grad_input.view({s.rows, s.input_size})
                             : call.empty({s.rows, bottom ? s.input_size : features});
    multiply(Matrix(to), Matrix(grad_pre), Matrix(call.input_weights(layer)), context.tf32);
    if (!bottom) {
      handed_down = mask.defined() ? to.mul_(mask) : to;
      grad = call.dense(handed_down);
    } else if (call.packed) {
      grad_input.narrow(0, 0, s.rows).copy_(to);
      grad_input.narrow(0, s.rows, input.size(0) - s.rows).zero_();
    } else if (batch_first) {
      grad_input.copy_(to.view({s.seq_len, s.batch, s.input_size}).transpose(0, 1));
    }
  }
  if (!want_hx) {
    grad_hx = call.empty({0});
  } else if (reset) {
    grad_hx = call.without_begun(grad_hx);
  }
  return {grad_input, grad_hx, std::move(grad_weights)};
}

}  // namespace fastrnn::cuda
