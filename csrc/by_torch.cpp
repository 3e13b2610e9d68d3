#include "by_torch.h"

#include <ATen/ops/rnn_relu_ops.h>
#include <ATen/ops/rnn_tanh_ops.h>
#include <ATen/ops/zeros.h>

#include "arguments.h"

namespace fastrnn {

bool torch_can_serve(const Tensor& input, const OptionalTensor& lengths,
                     const OptionalTensor& reset, const OptionalTensor& dropout_mask) {
  const c10::TensorImpl* const impl = input.unsafeGetTensorImpl();
  return !lengths && !reset && !dropout_mask && !impl->is_python_dispatch() &&
         !impl->has_symbolic_sizes_strides();
}

std::tuple<Tensor, Tensor> rnn_by_torch(FASTRNN_ARGUMENTS) {
  const Shape s = check(FASTRNN_PASS);
  // cuDNN takes a contiguous state only.
  const Tensor state =
      hx ? hx->contiguous() : at::zeros({s.states(), s.batch, s.hidden_size}, input.options());
  // Else cuDNN keeps nothing for a backward pass.
  const bool train = wants_grad(input, hx, weights);
  const bool is_relu = s.nonlinearity == Nonlinearity::kRelu;
  if (batch_sizes) {
    // It would take the rows beyond the last step for part of the sequence.
    const Tensor data = input.narrow(0, 0, s.rows);
    const auto op = is_relu ? at::_ops::rnn_relu_data::call : at::_ops::rnn_tanh_data::call;
    return op(data, *batch_sizes, state, weights, has_biases, num_layers, 0.0, train,
              bidirectional);
  }
  const auto op = is_relu ? at::_ops::rnn_relu_input::call : at::_ops::rnn_tanh_input::call;
  // For another layout of three dimensions, at::linear takes another path once a gradient is
  // wanted, and rounds differently.
  const Tensor steps = (batch_first ? input.transpose(0, 1) : input).contiguous();
  auto [output, hn] =
      op(steps, state, weights, has_biases, num_layers, 0.0, train, bidirectional, false);
  return {batch_first ? output.transpose(0, 1) : output, hn};
}

}  // namespace fastrnn
