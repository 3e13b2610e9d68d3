// The calls of our modules in eager mode, which read a module's settings from its __dict__: that
// takes less time than to pass them from Python one by one. They decline, as in python_calls.h, a
// module that is not as its constructor left it, and Python then looks closer. A class that defines
// one of these attributes itself is left to Python (fastrnn/_checks.py).
#pragma once

#include "python_leaky.h"

namespace fastrnn {
namespace {

// The attributes that are read.
struct Names {
  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }

  PyObject *parameters = intern("_parameters"), *buffers = intern("_buffers"),
           *weights = intern("_flat_weights"), *weight_names = intern("_flat_weights_names"),
           *training = intern("training"), *mode = intern("mode"), *bias = intern("bias"),
           *num_layers = intern("num_layers"), *bidirectional = intern("bidirectional"),
           *batch_first = intern("batch_first"), *dropout = intern("dropout"),
           *input_size = intern("input_size"), *hidden_size = intern("hidden_size"),
           *proj_size = intern("proj_size"),
           // Of LeakyRNN.
               *alpha = intern("alpha"), *form = intern("form"),
           *noise = intern("noise"),
           // Of RNNCell.
               *nonlinearity = intern("nonlinearity"), *weight_ih = intern("weight_ih"),
           *weight_hh = intern("weight_hh"), *bias_ih = intern("bias_ih"),
           *bias_hh = intern("bias_hh");
};
const Names& names() {
  static const Names all;
  return all;
}

// The value of an attribute, or null. It is owned, as comparing keys may run any code.
py::object attribute(const py::dict& module, PyObject* name) {
  PyObject* const value = PyDict_GetItemWithError(module.ptr(), name);
  if (!value) PyErr_Clear();
  return py::reinterpret_borrow<py::object>(value);
}

// An object as a dict or a list, if it is one.
template <typename T>
std::optional<T> as(py::object x) {
  if (!x || !py::isinstance<T>(x)) return std::nullopt;
  return py::reinterpret_steal<T>(x.release());
}

bool take_flag(py::handle x, bool& flag) {
  flag = x.ptr() == Py_True;
  return flag || x.ptr() == Py_False;
}

bool is_text(py::handle x, const char* text) {
  return x && PyUnicode_Check(x.ptr()) && PyUnicode_CompareWithASCIIString(x.ptr(), text) == 0;
}

bool is_float(py::handle x) { return x && PyFloat_CheckExact(x.ptr()); }

bool is_zero(py::handle x) {
  return (is_float(x) && PyFloat_AS_DOUBLE(x.ptr()) == 0) ||
         (x && PyLong_CheckExact(x.ptr()) && PyObject_Not(x.ptr()) == 1);
}

std::optional<int64_t> integer_or_none(py::handle x) { return x ? integer(x) : std::nullopt; }

// A module's list of weights, if it is up to date: for each name it holds the same object as the
// dict of parameters.
std::optional<py::list> current_weights(const py::dict& module) {
  const auto parameters = as<py::dict>(attribute(module, names().parameters));
  const auto weight_names = as<py::list>(attribute(module, names().weight_names));
  const auto weights = as<py::list>(attribute(module, names().weights));
  if (!parameters || !weight_names || !weights || weight_names->size() != weights->size())
    return std::nullopt;
  for (size_t i = 0; i < weight_names->size(); ++i) {
    const py::object name = (*weight_names)[i];
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
  const py::object mode = attribute(module, names().mode);
  nonlinearity = is_text(mode, "RNN_TANH") ? "tanh" : is_text(mode, "RNN_RELU") ? "relu" : "";
  return !nonlinearity.empty();
}

// Whether no dropout applies.
bool has_no_dropout(const py::dict& module, const Settings& s) {
  bool training;
  if (!take_flag(attribute(module, names().training), training)) return false;
  const py::object dropout = attribute(module, names().dropout);
  return is_zero(dropout) || (is_float(dropout) && (!training || s.num_layers == 1));
}

// hidden_size, if it is an int and of no other type.
std::optional<int64_t> hidden_size_of(const py::dict& module) {
  const py::object size = attribute(module, names().hidden_size);
  return size && PyLong_CheckExact(size.ptr()) ? integer(size) : std::nullopt;
}

// Whether the sizes that a module names are those of its weights.
bool has_sizes(const py::dict& module, const Settings& s) {
  const auto proj_size = integer_or_none(attribute(module, names().proj_size)),
             input_size = integer_or_none(attribute(module, names().input_size)),
             hidden_size = hidden_size_of(module);
  const Tensor& w_ih = s.weights[0];
  return proj_size == 0 && input_size && hidden_size && w_ih.dim() == 2 &&
         w_ih.size(0) == *hidden_size && w_ih.size(1) == *input_size;
}

bool take_settings(const py::dict& module, const Tensor& input, Settings& s) {
  const auto num_layers = integer_or_none(attribute(module, names().num_layers));
  if (!num_layers) return false;
  s.num_layers = *num_layers;
  const std::optional<py::list> weights = current_weights(module);
  return weights && take_weights(*weights, input, s.weights) && take_mode(module, s.nonlinearity) &&
         take_flag(attribute(module, names().bias), s.has_biases) &&
         take_flag(attribute(module, names().bidirectional), s.bidirectional) &&
         take_flag(attribute(module, names().batch_first), s.batch_first) &&
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
  return call_rnn_step(*input, py_hx, s.weights, s.has_biases, s.num_layers, s.nonlinearity);
}

// fastrnn.RNNCell.
py::object cell_of_module(const py::dict& module, py::handle py_input, py::handle py_hx) {
  const auto parameters = as<py::dict>(attribute(module, names().parameters));
  const Tensor* const input = take_input(py_input, 2);
  if (!parameters || !input) return py::none();
  py::object given[4];
  int count = 0;
  for (PyObject* name : {names().weight_ih, names().weight_hh, names().bias_ih, names().bias_hh}) {
    given[count] = attribute(*parameters, name);
    // Computed weights are attributes, which come first.
    if (!given[count] || attribute(module, name)) return py::none();
    ++count;
  }
  const py::object nonlinearity = attribute(module, names().nonlinearity);
  const std::optional<int64_t> hidden_size = hidden_size_of(module);
  const bool is_tanh = is_text(nonlinearity, "tanh"), has_biases = !given[2].is_none();
  Weights weights;
  if ((!is_tanh && !is_text(nonlinearity, "relu")) || given[3].is_none() == has_biases ||
      !take_weights(std::span(given, has_biases ? 4 : 2), *input, weights) || !hidden_size ||
      weights[1].dim() != 2 || weights[1].size(1) != *hidden_size)
    return py::none();
  return call_cell(*input, py_hx, weights, has_biases, is_tanh ? "tanh" : "relu");
}

// The leak of a module; false if a call draws or takes noise. A tensor is a parameter or a buffer:
// as an attribute it is one that a hook has computed.
bool take_leak(const py::dict& module, py::handle py_noise, py::object& alpha,
               std::string_view& form) {
  const bool quiet =
      is_zero(py_noise) || (py_noise.is_none() && is_zero(attribute(module, names().noise)));
  const py::object named = attribute(module, names().form);
  form = is_text(named, "rate") ? "rate" : is_text(named, "current") ? "current" : "";
  if (!quiet || form.empty()) return false;
  alpha = attribute(module, names().alpha);
  if (alpha) return is_float(alpha);
  for (PyObject* held : {names().parameters, names().buffers}) {
    const auto tensors = as<py::dict>(attribute(module, held));
    if (!alpha && tensors) alpha = attribute(*tensors, names().alpha);
  }
  return static_cast<bool>(alpha);
}

// fastrnn.LeakyRNN on a sequence.
py::object leaky_of_module(const py::dict& module, py::handle py_input, py::handle py_hx,
                           py::handle py_lengths, py::handle py_reset, py::handle py_noise,
                           py::handle py_return_layers) {
  const Tensor* const input = take_leaky_input(py_input, 3);
  Settings s;
  py::object alpha;
  std::string_view form;
  bool return_layers;
  if (!input || !take_leak(module, py_noise, alpha, form) || !take_settings(module, *input, s) ||
      !take_flag(py_return_layers, return_layers))
    return py::none();
  return call_leaky(*input, py_hx, s.weights, s.has_biases, s.num_layers, s.nonlinearity,
                    s.bidirectional, s.batch_first, py_lengths, py_reset, alpha, form,
                    return_layers);
}

// fastrnn.LeakyRNN.step.
py::object leaky_step_of_module(const py::dict& module, py::handle py_input, py::handle py_hx,
                                py::handle py_noise) {
  const Tensor* const input = take_leaky_input(py_input, 2);
  Settings s;
  py::object alpha;
  std::string_view form;
  if (!input || !take_leak(module, py_noise, alpha, form) || !take_settings(module, *input, s) ||
      s.bidirectional)
    return py::none();
  return call_leaky_step(*input, py_hx, s.weights, s.has_biases, s.num_layers, s.nonlinearity,
                         alpha, form);
}

}  // namespace
}  // namespace fastrnn
