// rnn_extended on CUDA: a call's extras, around the passes in stack.cpp.
#include "cuda/extended.h"

#include <ATen/ops/relu.h>
#include <ATen/ops/tanh.h>

#include "cuda/stack.h"

namespace fastrnn::cuda {
namespace {

// A call of rnn_extended. It refers to the arguments, so they must outlive it.
struct ExtendedCall : Call, Extended {
  ExtendedCall(const Context& context, bool backward, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS)
      : Call(context, backward, leak_of(alpha, alpha_value, form), FASTRNN_PASS) {
    const Extras extras(*this, FASTRNN_PASS_EXTRAS);
    keeps = extras.keeps();
    if (extras.gates->defined())
      this->gates = extras.gates->view({extras.gate_layers, shape.rows, shape.features()});
    if (leak == Leak::kNone) return;
    this->alpha_value = alpha_value;
    if (alpha) this->alpha = alpha->contiguous();
    Extended::hx = *Call::hx;
    if (!hx || leak == Leak::kRate) return;
    const bool is_relu = shape.nonlinearity == Nonlinearity::kRelu;
    Call::hx = MaybeOwned::owned(is_relu ? at::relu(Extended::hx) : at::tanh(Extended::hx));
  }

  bool keeps;  // see extras.h
  int64_t saved_layers() const { return (keeps ? 2 : 1) * shape.num_layers; }
  // [count, rows, D*H]
  Tensor of_layers(int64_t count) const { return empty({count, shape.rows, shape.features()}); }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward_extended(const Context& context, FASTRNN_ARGUMENTS,
                                                    FASTRNN_EXTRAS) {
  ExtendedCall call(context, /*backward=*/false, FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
  const Tensor layers = return_layers ? call.of_layers(num_layers) : Tensor();
  auto [output, hn] = run_forward(call, call, layers);
  if (!return_layers) return {output, hn, call.empty({0})};
  return {output, hn, layers.view(layers_shape(call.shape, num_layers, call.packed))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_extended_and_save(const Context& context,
                                                                     FASTRNN_ARGUMENTS,
                                                                     FASTRNN_EXTRAS) {
  ExtendedCall call(context, /*backward=*/false, FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
  const Tensor saved = call.of_layers(call.saved_layers());
  const Tensor states = saved.narrow(0, 0, num_layers);
  if (call.keeps) call.kept = saved.narrow(0, num_layers, num_layers);
  auto [output, hn] = run_forward(call, call, states);
  // What is saved is another tensor than what the caller may write to.
  const Tensor layers = return_layers
                            ? states.clone().view(layers_shape(call.shape, num_layers, call.packed))
                            : call.empty({0});
  return {output, hn, layers, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> backward_extended(
    const Context& context, const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const OptionalTensor& grad_layers, const Tensor& saved, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS,
    bool want_input, bool want_hx, bool want_weights, bool want_gates, bool want_alpha) {
  ExtendedCall call(context, /*backward=*/true, FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
  const int64_t rows = call.shape.rows, features = call.shape.features();
  const Gradients grads(call, grad_output, grad_hn, saved, call.saved_layers());
  TORCH_CHECK((!want_gates || gates) && (!want_alpha || alpha),
              "rnn_extended_backward: expected gates and alpha if their gradients are wanted");
  const Tensor states = saved.narrow(0, 0, num_layers);
  if (call.keeps) call.kept = saved.narrow(0, num_layers, num_layers);
  if (grad_layers)
    call.grad_layers = check_grad_layers(call, *grad_layers)->view({num_layers, rows, features});
  Tensor grad_gates = call.empty({0}), grad_alpha = call.empty({0});
  if (want_gates) {
    grad_gates = call.empty(gates->sizes());
    if (rows == 0 || call.packed) grad_gates.zero_();  // which may have more rows
    call.grad_gates =
        grad_gates.view({gates->size(0), call.packed ? call.input->size(0) : rows, features});
  }
  if (want_alpha) {
    grad_alpha = call.empty(alpha->sizes(), call.accumulation_type());
    if (rows == 0) grad_alpha.zero_();
    call.grad_alpha = grad_alpha;
  }
  auto [grad_input, grad_hx, grad_weights] =
      run_backward(call, call, grads, states, want_input, want_hx, want_weights);
  return {grad_input, grad_hx, std::move(grad_weights), grad_gates, grad_alpha};
}

}  // namespace fastrnn::cuda
