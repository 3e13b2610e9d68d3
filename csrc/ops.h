// The operators' arguments and their typed calls through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/string_view.h>

#include <functional>
#include <optional>
#include <tuple>
#include <vector>

#include "rnn.h"

namespace fastrnn {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

// What every operator takes after its own arguments; shapes in library.cpp.
#define FASTRNN_ARGUMENTS                                                               \
  const Tensor &input, const OptionalTensor &hx, TensorList weights,                    \
      const OptionalTensor &batch_sizes, const OptionalTensor &lengths,                 \
      const OptionalTensor &reset, const OptionalTensor &dropout_mask, bool has_biases, \
      int64_t num_layers, c10::string_view nonlinearity, bool bidirectional, bool batch_first
#define FASTRNN_PASS                                                                     \
  input, hx, weights, batch_sizes, lengths, reset, dropout_mask, has_biases, num_layers, \
      nonlinearity, bidirectional, batch_first

// output, hn
FASTRNN_API std::tuple<Tensor, Tensor> rnn(FASTRNN_ARGUMENTS);
// output, hn, saved (empty unless `save`)
std::tuple<Tensor, Tensor, Tensor> rnn_forward(FASTRNN_ARGUMENTS, bool save);
// grad_input, grad_hx, grad_weights; each empty unless wanted
std::tuple<Tensor, Tensor, std::vector<Tensor>> rnn_backward(const OptionalTensor& grad_output,
                                                             const OptionalTensor& grad_hn,
                                                             const Tensor& saved, FASTRNN_ARGUMENTS,
                                                             bool want_input, bool want_hx,
                                                             bool want_weights);

// What rnn_extended takes besides.
#define FASTRNN_EXTRAS                                                          \
  const OptionalTensor &gates, const OptionalTensor &alpha, double alpha_value, \
      c10::string_view form, bool return_layers
#define FASTRNN_PASS_EXTRAS gates, alpha, alpha_value, form, return_layers

// output, hn, layers (empty unless `return_layers`)
FASTRNN_API std::tuple<Tensor, Tensor, Tensor> rnn_extended(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS);
// output, hn, layers, saved
std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_extended_forward(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS);
// grad_input, grad_hx, grad_weights, grad_gates, grad_alpha; each empty unless wanted
std::tuple<Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> rnn_extended_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const OptionalTensor& grad_layers, const Tensor& saved, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS,
    bool want_input, bool want_hx, bool want_weights, bool want_gates, bool want_alpha);

// The operator rnn under an autograd key. If the device has a function that selects calls for
// torch's own operator, that one serves them, and they are recorded as its calls.
std::tuple<Tensor, Tensor> rnn_autograd(FASTRNN_ARGUMENTS,
                                        bool (*goes_to_torch)(FASTRNN_ARGUMENTS));

// Whether autograd must record a call with these tensors.
FASTRNN_API bool wants_grad(const Tensor& input, const OptionalTensor& hx, TensorList weights);

// Computes the gradients that are wanted of input, hx and weights, differentiable again. The Python
// package provides it.
using ReferenceBackward = std::function<std::vector<Tensor>(
    const OptionalTensor& grad_output, const OptionalTensor& grad_hn, const Tensor& saved,
    const std::vector<bool>& wanted, FASTRNN_ARGUMENTS)>;
FASTRNN_API void set_reference_backward(ReferenceBackward f);

// The same of rnn_extended: of input, hx, gates, alpha and weights.
using ExtendedReferenceBackward = std::function<std::vector<Tensor>(
    const std::vector<OptionalTensor>& grads, const std::vector<bool>& wanted, FASTRNN_ARGUMENTS,
    FASTRNN_EXTRAS)>;
FASTRNN_API void set_extended_reference_backward(ExtendedReferenceBackward f);

// An activation of `pre` whose value is known: then no derivative needs the values of `pre`.
FASTRNN_API Tensor known_activation(const Tensor& pre, const Tensor& value, bool is_tanh);

}  // namespace fastrnn
