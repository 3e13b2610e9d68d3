// The operators' typed calls through the dispatcher.
#include "ops.h"

namespace fastrnn {
namespace {

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

}  // namespace

std::tuple<Tensor, Tensor> rnn(FASTRNN_ARGUMENTS) {
  static const auto op = find_op<decltype(rnn)>("fastrnn::rnn");
  return op.call(FASTRNN_PASS);
}

std::tuple<Tensor, Tensor, Tensor> rnn_forward(FASTRNN_ARGUMENTS, bool save) {
  static const auto op = find_op<decltype(rnn_forward)>("fastrnn::rnn_forward");
  return op.call(FASTRNN_PASS, save);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> rnn_backward(const OptionalTensor& grad_output,
                                                             const OptionalTensor& grad_hn,
                                                             const Tensor& saved, FASTRNN_ARGUMENTS,
                                                             bool want_input, bool want_hx,
                                                             bool want_weights) {
  static const auto op = find_op<decltype(rnn_backward)>("fastrnn::rnn_backward");
  return op.call(grad_output, grad_hn, saved, FASTRNN_PASS, want_input, want_hx, want_weights);
}

std::tuple<Tensor, Tensor, Tensor> rnn_extended(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS) {
  static const auto op = find_op<decltype(rnn_extended)>("fastrnn::rnn_extended");
  return op.call(FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_extended_forward(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS) {
  static const auto op = find_op<decltype(rnn_extended_forward)>("fastrnn::rnn_extended_forward");
  return op.call(FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> rnn_extended_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const OptionalTensor& grad_layers, const Tensor& saved, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS,
    bool want_input, bool want_hx, bool want_weights, bool want_gates, bool want_alpha) {
  static const auto op = find_op<decltype(rnn_extended_backward)>("fastrnn::rnn_extended_backward");
  return op.call(grad_output, grad_hn, grad_layers, saved, FASTRNN_PASS, FASTRNN_PASS_EXTRAS,
                 want_input, want_hx, want_weights, want_gates, want_alpha);
}

}  // namespace fastrnn
