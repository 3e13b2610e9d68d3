// The calls of eager mode with a leak; see python_calls.h.
#pragma once

#include "python_calls.h"

namespace fastrnn {
namespace {

// The input of a call with a leak, as take_input has it; CUDA leaves such calls to Python.
const Tensor* take_leaky_input(py::handle py_input, int64_t dims) {
  const Tensor* input = take_input(py_input, dims);
  return input && input->is_cpu() ? input : nullptr;
}

// The leak as rnn_extended takes it: of every unit, or a number.
bool take_alpha(py::handle py_alpha, int64_t states, const Tensor& input, int64_t hidden_size,
                OptionalTensor& alpha, double& alpha_value) {
  if (PyFloat_CheckExact(py_alpha.ptr())) {
    alpha_value = PyFloat_AS_DOUBLE(py_alpha.ptr());
    return true;
  }
  const Tensor* t = plain_tensor(py_alpha.ptr());
  if (!t || t->device() != input.device() || !t->is_floating_point()) return false;
  check_storage("alpha", *t);
  const int64_t last = t->dim() > 0 ? t->size(-1) : 1, first = t->dim() > 1 ? t->size(0) : 1;
  if (t->dim() > 2 || (last != 1 && last != hidden_size) || (first != 1 && first != states))
    return false;
  // No view where none is needed: it would cost autograd a sum.
  const bool whole = t->dim() > 0 && last == hidden_size && first == states;
  alpha = !whole ? t->expand({states, hidden_size}) : t->dim() == 1 ? t->unsqueeze(0) : *t;
  const at::ScalarType exact = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (alpha->scalar_type() != exact) alpha = alpha->to(exact);
  return true;
}

// What a call with a leak has besides a plain one's arguments, as the operator takes it.
struct LeakArguments {
  OptionalTensor alpha;
  double alpha_value = 1;
  std::string_view form;
  bool return_layers = false;
};

bool take_leak_arguments(py::handle py_alpha, std::string_view form, bool return_layers,
                         const Tensor& input, const Weights& weights, int64_t num_layers,
                         bool bidirectional, LeakArguments& leak) {
  leak.form = form;
  leak.return_layers = return_layers;
  return weights[1].dim() == 2 && num_layers > 0 &&
         num_layers <= std::ssize(weights) &&  // else the product below may overflow
         take_alpha(py_alpha, num_layers * (bidirectional ? 2 : 1), input, weights[1].size(1),
                    leak.alpha, leak.alpha_value);
}

bool wants_leaky_grad(const Tensor& input, const OptionalTensor& hx, TensorList weights,
                      const LeakArguments& leak) {
  return wants_grad(input, hx, weights) ||
         (leak.alpha && leak.alpha->requires_grad() && at::GradMode::is_enabled());
}

std::optional<std::tuple<Tensor, Tensor, Tensor>> call_extended(
    const Tensor& input, const OptionalTensor& hx, const Weights& weights,
    const OptionalTensor& lengths, const OptionalTensor& reset, bool has_biases, int64_t num_layers,
    std::string_view nonlinearity, bool bidirectional, bool batch_first, const LeakArguments& leak,
    bool recorded) {
  return quietly(input, weights, has_biases, recorded, [&] {
    return rnn_extended(input, hx, weights, std::nullopt, lengths, reset, std::nullopt, has_biases,
                        num_layers, nonlinearity, bidirectional, batch_first, std::nullopt,
                        leak.alpha, leak.alpha_value, leak.form, leak.return_layers);
  });
}

py::object call_leaky(const Tensor& input, py::handle py_hx, const Weights& weights,
                      bool has_biases, int64_t num_layers, std::string_view nonlinearity,
                      bool bidirectional, bool batch_first, py::handle py_lengths,
                      py::handle py_reset, py::handle py_alpha, std::string_view form,
                      bool return_layers) {
  OptionalTensor hx, lengths, reset;
  LeakArguments leak;
  if (input.dim() != 3 || !take_state(py_hx, 3, input, hx) ||
      !take_marks(py_lengths, py_reset, input, lengths, reset) ||
      !take_leak_arguments(py_alpha, form, return_layers, input, weights, num_layers, bidirectional,
                           leak))
    return py::none();
  auto results =
      call_extended(input, hx, weights, lengths, reset, has_biases, num_layers, nonlinearity,
                    bidirectional, batch_first, leak, wants_leaky_grad(input, hx, weights, leak));
  if (!results) return py::none();
  auto& [output, hn, layers] = *results;
  if (!return_layers) return to_python(Results({std::move(output), std::move(hn)}));
  return py::make_tuple(to_python(std::move(output)), to_python(std::move(hn)),
                        to_python(batch_first ? layers.transpose(1, 2) : std::move(layers)));
}

py::object rnn_extended_eager(py::handle py_input, py::handle py_hx, const py::list& py_weights,
                              bool has_biases, py::handle py_num_layers,
                              std::string_view nonlinearity, bool bidirectional, bool batch_first,
                              py::handle py_lengths, py::handle py_reset, py::handle py_alpha,
                              std::string_view form, bool return_layers) {
  const Tensor* input = take_leaky_input(py_input, 3);
  const std::optional<int64_t> num_layers = integer(py_num_layers);
  Weights weights;
  if (!input || !num_layers || !take_weights(py_weights, *input, weights)) return py::none();
  return call_leaky(*input, py_hx, weights, has_biases, *num_layers, nonlinearity, bidirectional,
                    batch_first, py_lengths, py_reset, py_alpha, form, return_layers);
}

py::object call_leaky_step(const Tensor& input, py::handle py_hx, const Weights& weights,
                           bool has_biases, int64_t num_layers, std::string_view nonlinearity,
                           py::handle py_alpha, std::string_view form) {
  OptionalTensor hx;
  LeakArguments leak;
  if (!take_state(py_hx, input.dim() + 1, input, hx) ||
      !take_leak_arguments(py_alpha, form, /*return_layers=*/false, input, weights, num_layers,
                           /*bidirectional=*/false, leak))
    return py::none();
  const bool recorded = wants_leaky_grad(input, hx, weights, leak);
  return call_step(input, hx, recorded, [&](const Tensor& x, const OptionalTensor& h) -> Results {
    auto results =
        call_extended(x, h, weights, std::nullopt, std::nullopt, has_biases, num_layers,
                      nonlinearity, /*bidirectional=*/false, /*batch_first=*/false, leak, recorded);
    if (!results) return std::nullopt;
    return {{std::move(std::get<0>(*results)), std::move(std::get<1>(*results))}};
  });
}

}  // namespace
}  // namespace fastrnn
