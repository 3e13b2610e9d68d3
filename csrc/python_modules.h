// The calls of our modules in eager mode, which read a module's settings from its __dict__: that
// takes less time than to pass them from Python one by one. They decline, as in python_calls.h, a
// module that is not as its constructor left it, and Python then looks closer.
#pragma once

#include "python_calls.h"

namespace fastrnn {
namespace {

// The value of a module's attribute, or null. It is owned, as comparing keys may run any code.
py::object attribute(const py::dict& module, PyObject* name) {
  PyObject* const value = PyDict_GetItemWithError(module.ptr(), name);
  if (!value) PyErr_Clear();
  return py::reinterpret_borrow<py::object>(value);
}
#define FASTRNN_ATTRIBUTE(module, name)                              \
  ([&] {                                                             \
    static PyObject* const kName = PyUnicode_InternFromString(name); \
    return attribute(module, kName);                                 \
  }())

std::optional<py::dict> dict_of(py::object x) {
  if (!x || !PyDict_CheckExact(x.ptr())) return std::nullopt;
  return py::reinterpret_steal<py::dict>(x.release());
}

std::optional<py::list> list_of(py::object x) {
  if (!x || !PyList_CheckExact(x.ptr())) return std::nullopt;
  return py::reinterpret_steal<py::list>(x.release());
}

bool take_flag(py::handle x, bool& flag) {
  flag = x.ptr() == Py_True;
  return flag || x.ptr() == Py_False;
}

bool is_text(py::handle x, const char* text) {
  return x && PyUnicode_Check(x.ptr()) && PyUnicode_CompareWithASCIIString(x.ptr(), text) == 0;
}

bool is_zero(py::handle x) {
  return x && ((PyFloat_CheckExact(x.ptr()) && PyFloat_AS_DOUBLE(x.ptr()) == 0) ||
               (PyLong_CheckExact(x.ptr()) && PyObject_Not(x.ptr()) == 1));
}

std::optional<int64_t> integer_or_none(py::handle x) { return x ? integer(x) : std::nullopt; }

// A module's list of weights, if it is up to date: for each name it holds the same object as the
// dict of parameters.
std::optional<py::list> current_weights(const py::dict& module) {
  const auto parameters = dict_of(FASTRNN_ATTRIBUTE(module, "_parameters"));
  const auto names = list_of(FASTRNN_ATTRIBUTE(module, "_flat_weights_names"));
  const auto weights = list_of(FASTRNN_ATTRIBUTE(module, "_flat_weights"));
  if (!parameters || !names || !weights || names->size() != weights->size()) return std::nullopt;
  for (size_t i = 0; i < names->size(); ++i) {
    const py::object name = (*names)[i];
    if (!PyUnicode_CheckExact(name.ptr())) return std::nullopt;
    const py::object found = attribute(*parameters, name.ptr());
    if (i >= weights->size() || !found || found.ptr() != PyList_GET_ITEM(weights->ptr(), i))
      return std::nullopt;
  }
  return weights;
}

// What a call takes from a module.
struct Settings {
  Weights weights;
  bool has_biases = false, bidirectional = false, batch_first = false;
  int64_t num_layers = 0;
  std::string_view nonlinearity;
};

bool take_mode(const py::dict& module, std::string_view& nonlinearity) {
  const py::object mode = FASTRNN_ATTRIBUTE(module, "mode");
  nonlinearity = is_text(mode, "RNN_TANH") ? "tanh" : is_text(mode, "RNN_RELU") ? "relu" : "";
  return !nonlinearity.empty();
}

// Whether no dropout applies.
bool has_no_dropout(const py::dict& module, const Settings& s) {
  const py::object dropout = FASTRNN_ATTRIBUTE(module, "dropout");
  bool training;
  if (!take_flag(FASTRNN_ATTRIBUTE(module, "training"), training)) return false;
  return is_zero(dropout) ||
         (dropout && PyFloat_CheckExact(dropout.ptr()) && (!training || s.num_layers == 1));
}

std::optional<int64_t> integer_or_none(PyObject* x) { return x ? integer(x) : std::nullopt; }

// The size of a default state: no type but int.
std::optional<int64_t> hidden_size_of(const py::dict& module) {
  const py::object size = FASTRNN_ATTRIBUTE(module, "hidden_size");
  return size && PyLong_CheckExact(size.ptr()) ? integer(size) : std::nullopt;
}

// Whether the sizes that a module names are those of its weights.
bool has_sizes(const py::dict& module, const Settings& s) {
  const std::optional<int64_t> proj_size = integer_or_none(FASTRNN_ATTRIBUTE(module, "proj_size")),
                               input_size =
                                   integer_or_none(FASTRNN_ATTRIBUTE(module, "input_size")),
                               hidden_size = hidden_size_of(module);
  const Tensor& w_ih = s.weights[0];
  return proj_size == 0 && input_size && hidden_size && w_ih.dim() == 2 &&
         w_ih.size(0) == *hidden_size && w_ih.size(1) == *input_size;
}

bool take_settings(const py::dict& module, const Tensor& input, Settings& s) {
  const auto num_layers = integer_or_none(FASTRNN_ATTRIBUTE(module, "num_layers"));
  if (!num_layers) return false;
  s.num_layers = *num_layers;
  const std::optional<py::list> weights = current_weights(module);
  return weights && take_weights(*weights, input, s.weights) && take_mode(module, s.nonlinearity) &&
         take_flag(FASTRNN_ATTRIBUTE(module, "bias"), s.has_biases) &&
         take_flag(FASTRNN_ATTRIBUTE(module, "bidirectional"), s.bidirectional) &&
         take_flag(FASTRNN_ATTRIBUTE(module, "batch_first"), s.batch_first) &&
         has_no_dropout(module, s) && has_sizes(module, s);
}

// fastrnn.RNN on a sequence.
py::object rnn_of_module(const py::dict& module, py::handle py_input, py::handle py_hx,
                         py::handle py_lengths, py::handle py_reset) {
  const Tensor* const input = take_input(py_input, 3);
  Settings s;
  if (!input || !take_settings(module, *input, s)) return py::none();
  return call_sequence(*input, py_hx, s.weights, s.has_biases, s.num_layers, s.nonlinearity,
                       s.bidirectional, s.batch_first, py_lengths, py_reset);
}

// fastrnn.RNN.step.
py::object step_of_module(const py::dict& module, py::handle py_input, py::handle py_hx) {
  const Tensor* const input = take_input(py_input, 2);
  Settings s;
  if (!input || !take_settings(module, *input, s) || s.bidirectional) return py::none();
  return call_step(*input, py_hx, s.weights,
                   [&](const Tensor& x, const OptionalTensor& hx, bool recorded) {
                     return call(x, hx, s.weights, std::nullopt, std::nullopt, s.has_biases,
                                 s.num_layers, s.nonlinearity, /*bidirectional=*/false,
                                 /*batch_first=*/false, recorded);
                   });
}

// fastrnn.RNNCell.
py::object cell_of_module(const py::dict& module, py::handle py_input, py::handle py_hx) {
  const auto parameters = dict_of(FASTRNN_ATTRIBUTE(module, "_parameters"));
  const Tensor* const input = take_input(py_input, 2);
  if (!parameters || !input) return py::none();
  const py::object given[] = {
      FASTRNN_ATTRIBUTE(*parameters, "weight_ih"), FASTRNN_ATTRIBUTE(*parameters, "weight_hh"),
      FASTRNN_ATTRIBUTE(*parameters, "bias_ih"), FASTRNN_ATTRIBUTE(*parameters, "bias_hh")};
  const py::object nonlinearity = FASTRNN_ATTRIBUTE(module, "nonlinearity");
  const std::optional<int64_t> hidden_size = hidden_size_of(module);
  const bool is_tanh = is_text(nonlinearity, "tanh");
  Weights weights;
  for (const py::object& w : given)
    if (!w) return py::none();  // computed weights are attributes
  const bool has_biases = !given[2].is_none();
  if ((!is_tanh && !is_text(nonlinearity, "relu")) || given[3].is_none() == has_biases ||
      !take_weights(std::span(given, has_biases ? 4 : 2), *input, weights) || !hidden_size ||
      weights[1].dim() != 2 || weights[1].size(1) != *hidden_size)
    return py::none();
  return call_cell(*input, py_hx, weights, has_biases, is_tanh ? "tanh" : "relu");
}

// The leak of a module, and the object that holds it.
bool take_leak(const py::dict& module, py::handle py_noise, py::object& alpha, PyLeak& leak) {
  const py::object noise = py_noise.is_none() ? FASTRNN_ATTRIBUTE(module, "noise")
                                              : py::reinterpret_borrow<py::object>(py_noise);
  const py::object form = FASTRNN_ATTRIBUTE(module, "form");
  leak.form = is_text(form, "rate") ? "rate" : is_text(form, "current") ? "current" : "";
  if (!is_zero(noise) || leak.form.empty()) return false;
  alpha = FASTRNN_ATTRIBUTE(module, "alpha");
  for (const py::object& held :
       {FASTRNN_ATTRIBUTE(module, "_parameters"), FASTRNN_ATTRIBUTE(module, "_buffers")}) {
    const auto tensors = dict_of(held);
    if (!alpha && tensors) alpha = FASTRNN_ATTRIBUTE(*tensors, "alpha");
  }
  leak.alpha = alpha;
  return static_cast<bool>(alpha);
}

// fastrnn.LeakyRNN on a sequence.
py::object leaky_of_module(const py::dict& module, py::handle py_input, py::handle py_hx,
                           py::handle py_lengths, py::handle py_reset, py::handle py_noise,
                           py::handle py_return_layers) {
  const Tensor* const input = take_input(py_input, 3);
  Settings s;
  PyLeak leak;
  py::object alpha;
  bool return_layers;
  if (!input || !take_settings(module, *input, s) || !take_leak(module, py_noise, alpha, leak) ||
      !take_flag(py_return_layers, return_layers))
    return py::none();
  return call_leaky(*input, py_hx, s.weights, s.has_biases, s.num_layers, s.nonlinearity,
                    s.bidirectional, s.batch_first, py_lengths, py_reset, leak, return_layers);
}

// fastrnn.LeakyRNN.step.
py::object leaky_step_of_module(const py::dict& module, py::handle py_input, py::handle py_hx,
                                py::handle py_noise) {
  const Tensor* const input = take_input(py_input, 2);
  Settings s;
  PyLeak leak;
  py::object alpha;
  if (!input || !take_settings(module, *input, s) || s.bidirectional ||
      !take_leak(module, py_noise, alpha, leak))
    return py::none();
  return call_step(
      *input, py_hx, s.weights, [&](const Tensor& x, const OptionalTensor& hx, bool) -> Results {
        auto results = call_extended(x, hx, s.weights, std::nullopt, std::nullopt, s.has_biases,
                                     s.num_layers, s.nonlinearity, /*bidirectional=*/false,
                                     /*batch_first=*/false, leak, /*return_layers=*/false);
        if (!results) return std::nullopt;
        return {{std::move(std::get<0>(*results)), std::move(std::get<1>(*results))}};
      });
}

#undef FASTRNN_ATTRIBUTE

}  // namespace
}  // namespace fastrnn
