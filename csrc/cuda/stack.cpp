// A call from start to end: for each layer the input's product by cuBLAS, and the recurrence in one
// launch or step by step; backward also the gradients of the weights.
#include "cuda/stack.h"

#include <ATen/ops/cat.h>

#include "cuda/guard.h"
#include "cuda/launchers.h"
#include "cuda/layer.h"
#include "cuda/steps.h"

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
  Problem problem = problem_of(dtype, shape, context, hx->defined(), backward);
  problem.leaks = leak != Leak::kNone;
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
void forward_layer(Call& call, const Extended& extended, const Layer& layer, const Tensor& copy,
                   const Tensor& hn) {
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
  if (!run_in_one_launch(call, r, forward_launcher)) forward_by_steps(call, extended, layer, r, hn);
}

void backward_layer(Call& call, const Extended& extended, const Layer& layer, Sequence grad_output,
                    const Tensor& grad_hn, const Tensor& grad_hx) {
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
  if (!run_in_one_launch(call, r, backward_launcher))
    backward_by_steps(call, extended, layer, r, grad_hx);
}

// The gradient of the output of the last layer, as an output of all layers too: [rows, D*H].
Tensor grad_of_top(const Call& call, const Extended& extended, const Gradients& grads) {
  const Shape& s = call.shape;
  const Tensor sum = extended.grad_layers[s.num_layers - 1].clone();
  if (!grads.output->defined()) return sum;
  if (call.packed) return sum.add_(*grads.output);
  sum.view({s.seq_len, s.batch, s.features()})
      .add_(call.batch_first ? grads.output->transpose(0, 1) : *grads.output);
  return sum;
}

// From [rows, I] to the input's layout.
void store_grad_input(const Call& call, const Tensor& rows, const Tensor& grad_input) {
  const Shape& s = call.shape;
  if (call.packed) {
    grad_input.narrow(0, 0, s.rows).copy_(rows);
    grad_input.narrow(0, s.rows, grad_input.size(0) - s.rows).zero_();
  } else if (call.batch_first) {
    grad_input.copy_(rows.view({s.seq_len, s.batch, s.input_size}).transpose(0, 1));
  }
}

}  // namespace

std::tuple<Tensor, Tensor> run_forward(Call& call, const Extended& extended, const Tensor& layers) {
  const Shape& s = call.shape;
  const int64_t L = s.num_layers, D = s.num_directions, features = s.features();
  const Tensor output = call.empty({s.rows, features});
  const Tensor hn = call.empty({L * D, s.batch, s.hidden_size});
  Tensor x = s.rows > 0 ? call.flat_input() : Tensor();
  for (int64_t layer = 0; layer < L && s.rows > 0; ++layer) {
    const bool top = layer == L - 1, save = layers.defined();
    if (layer > 0 && call.dropout_mask->defined()) x = x.mul(call.mask(layer - 1));
    const Tensor h = save ? layers[layer] : top ? output : call.empty({s.rows, features});
    const Tensor gates = extended.gates_of(layer);
    if (gates.defined()) h.copy_(gates);
    multiply(Matrix(h), Matrix(x), Matrix(call.input_weights(layer)).transposed(),
             call.context.tf32, /*add=*/gates.defined());
    forward_layer(call, extended, {h, {}, layer * D, extended.kept_of(layer)},
                  save && top ? output : Tensor(), hn);
    x = h;
  }
  if (call.packed) return {output, hn};
  const Tensor shaped = output.view({s.seq_len, s.batch, features});
  return {call.batch_first ? shaped.transpose(0, 1) : shaped, hn};
}

Grads run_backward(Call& call, const Extended& extended, const Gradients& grads,
                   const Tensor& layers, bool want_input, bool want_hx, bool want_weights) {
  const Shape& s = call.shape;
  const int64_t L = s.num_layers, D = s.num_directions, features = s.features();
  const Tensor grad_input = want_input ? call.empty(call.input->sizes()) : call.empty({0});
  Tensor grad_hx;
  if (want_hx) grad_hx = call.empty({L * D, s.batch, s.hidden_size});
  std::vector<Tensor> grad_weights;
  for (size_t i = 0; want_weights && i < call.weights.size(); ++i)
    grad_weights.push_back(call.empty(call.weights[i]->sizes()));
  if (s.rows == 0) {
    grad_input.zero_();
    for (Tensor& grad : grad_weights) grad.zero_();
    return {grad_input, want_hx ? grad_hx : call.empty({0}), std::move(grad_weights)};
  }

  Tensor handed_down;  // [rows, D*H], the gradient of the layer's output, where it is not as given
  if (extended.grad_layers.defined()) handed_down = grad_of_top(call, extended, grads);
  for (int64_t layer = L - 1; layer >= 0; --layer) {
    const bool bottom = layer == 0, as_given = !handed_down.defined();
    Tensor grad_pre = extended.grad_gates_of(layer, s.rows);
    if (!grad_pre.defined())
      grad_pre = as_given ? call.empty({s.rows, features}) : handed_down;  // in its place
    const Layer own{layers[layer], grad_pre, layer * D, extended.kept_of(layer)};
    const Sequence grad = !as_given                 ? call.dense(handed_down)
                          : grads.output->defined() ? call.sequence(*grads.output)
                                                    : Sequence{};
    backward_layer(call, extended, own, grad, *grads.hn, grad_hx);
    const Tensor mask = bottom ? Tensor() : call.mask(layer - 1);
    if (want_weights) {
      Input x{bottom ? Tensor() : layers[layer - 1], bottom ? s.input_size : features};
      if (mask.defined()) x.below = x.below.mul(mask);
      weight_grads(call, own, x, grad_weights);
    }
    if (bottom && !want_input) break;
    // Straight into grad_input where that is [rows, I].
    const bool direct = bottom && !call.batch_first && !call.packed;
    const Tensor to = direct ? grad_input.view({s.rows, s.input_size})
                             : call.empty({s.rows, bottom ? s.input_size : features});
    multiply(Matrix(to), Matrix(grad_pre), Matrix(call.input_weights(layer)), call.context.tf32);
    if (bottom) {
      store_grad_input(call, to, grad_input);
      break;
    }
    handed_down = mask.defined() ? to.mul_(mask) : to;
    if (extended.grad_layers.defined()) handed_down.add_(extended.grad_layers[layer - 1]);
  }
  if (!want_hx) {
    grad_hx = call.empty({0});
  } else if (call.reset) {
    grad_hx = call.without_begun(grad_hx);
  }
  return {grad_input, grad_hx, std::move(grad_weights)};
}

std::tuple<Tensor, Tensor, Tensor> forward(const Context& context, FASTRNN_ARGUMENTS, bool save) {
  Call call(context, /*backward=*/false, Leak::kNone, FASTRNN_PASS);
  const Shape& s = call.shape;
  const Tensor saved = call.empty({save ? s.num_layers : 0, s.rows, s.features()});
  auto [output, hn] = run_forward(call, Extended{}, save ? saved : Tensor());
  return {output, hn, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> backward(
    const Context& context, const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const Tensor& saved, FASTRNN_ARGUMENTS, bool want_input, bool want_hx, bool want_weights) {
  Call call(context, /*backward=*/true, Leak::kNone, FASTRNN_PASS);
  const Gradients grads(call, grad_output, grad_hn, saved, call.shape.num_layers);
  return run_backward(call, Extended{}, grads, saved, want_input, want_hx, want_weights);
}

}  // namespace fastrnn::cuda
