// The calls of eager mode, straight from Python.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/extension.h>

#include <array>
#include <atomic>
#include <span>

#include "arguments.h"
#include "ops.h"
#if defined(FASTRNN_WITH_CUDA)
#include "cuda/rnn_cuda.h"
#endif

namespace fastrnn {
namespace {

PyObject* parameter_type = nullptr;  // torch.nn.Parameter, set when the module loads

// A tensor that the kernels can take as it is: no subclass but Parameter, no forward-mode tangent.
const Tensor* plain_tensor(PyObject* x) {
  if (!THPVariable_CheckExact(x) && reinterpret_cast<PyObject*>(Py_TYPE(x)) != parameter_type)
    return nullptr;
  const Tensor& t = THPVariable_Unpack(x);
  if (t.unsafeGetTensorImpl()->is_python_dispatch() || t._fw_grad(0).defined() ||
      t.layout() != at::kStrided) {
    return nullptr;
  }
  return &t;
}

// Whether a mode is on in which Python or a transform must see the call.
bool call_is_watched() {
  const auto& included = c10::impl::tls_local_dispatch_key_set().included_;
  return included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         included.has(c10::DispatchKey::Python) || at::impl::torch_function_mode_enabled() ||
         torch::jit::tracer::isTracing();
}

#if defined(FASTRNN_WITH_CUDA)
// Whether a device has kernels. The first call for each device looks for them, which may wait for
// the device, and so for what another Python thread has yet to do.
bool cuda_serves(int index) {
  static std::array<std::atomic<bool>, 64> asked{};
  std::optional<py::gil_scoped_release> no_gil;
  if (index >= std::ssize(asked) || !asked[index].exchange(true)) no_gil.emplace();
  return cuda::why_no_kernels(index).empty();
}
#endif

bool on_device_with_kernels(const Tensor& x) {
#if defined(FASTRNN_WITH_CUDA)
  if (x.is_cuda()) return cuda_serves(x.get_device());
#endif
  return x.is_cpu();
}

bool has_kernels(const Tensor& x) {
  const at::ScalarType dtype = x.scalar_type();
  return on_device_with_kernels(x) && x.size(-1) > 0 &&
         (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf ||
          dtype == at::kBFloat16);
}

// Nothing if it is not an integer, or too large. A bool does not count as one.
std::optional<int64_t> integer(py::handle x) {
  py::detail::make_caster<int64_t> caster;
  if (PyBool_Check(x.ptr()) || !caster.load(x, /*convert=*/false)) return std::nullopt;
  return static_cast<int64_t>(caster);
}

bool alike(const Tensor& x, const Tensor& y) {
  return x.scalar_type() == y.scalar_type() && x.device() == y.device();
}

// Adds a dimension of 1. The storage is checked first: a view of a tensor without storage raises a
// less helpful error.
Tensor unsqueezed(const char* name, const Tensor& x, int64_t dim) {
  check_storage(name, x);
  return x.unsqueeze(dim);
}

// The parts of a call in eager mode, if the kernels can take them as they are.

// An input of `dims` dimensions, or of one less, without a batch.
const Tensor* take_input(py::handle py_input, int64_t dims) {
  if (call_is_watched()) return nullptr;
  const Tensor* input = plain_tensor(py_input.ptr());
  if (!input || (input->dim() != dims && input->dim() != dims - 1)) return nullptr;
  return has_kernels(*input) ? input : nullptr;
}

// A state of `dims` dimensions, or none.
bool take_state(py::handle py_hx, int64_t dims, const Tensor& input, OptionalTensor& hx) {
  if (py_hx.is_none()) return true;
  const Tensor* t = plain_tensor(py_hx.ptr());
  if (!t || t->dim() != dims || !alike(*t, input)) return false;
  hx = *t;
  return true;
}

using Weights = c10::SmallVector<Tensor, 8>;

template <typename Handles>
bool take_weights(const Handles& py_weights, const Tensor& input, Weights& weights) {
  for (py::handle w : py_weights) {
    const Tensor* t = plain_tensor(w.ptr());
    if (!t || !alike(*t, input)) return false;
    weights.push_back(*t);
  }
  return weights.size() >= 2;
}

// Lengths and reset as the operator takes them: Python takes other types too, and a last dimension
// of 1.
bool take_marks(py::handle py_lengths, py::handle py_reset, const Tensor& input,
                OptionalTensor& lengths, OptionalTensor& reset) {
  for (auto& [from, to] : {std::pair{py_lengths, &lengths}, std::pair{py_reset, &reset}}) {
    if (from.is_none()) continue;
    const Tensor* t = plain_tensor(from.ptr());
    if (!t || t->device() != input.device()) return false;
    *to = *t;
  }
  return (!lengths || lengths->scalar_type() == at::kLong) &&
         (!reset || (reset->scalar_type() == at::kBool && reset->dim() == 2));
}

py::object to_python(Tensor x) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(x)));
}

// Calls an operator, skipping its autograd key if nothing wants gradients. The GIL is kept if the
// call is shorter than a wait for the GIL might be; never on CUDA, where a launch may wait for what
// another Python thread has yet to do. Returns nothing if the operator, which checks the sizes,
// refuses the arguments.
template <typename Operator>
std::optional<std::invoke_result_t<Operator>> quietly(const Tensor& input, TensorList weights,
                                                      bool has_biases, bool wants_grad,
                                                      const Operator& call_operator) {
  std::optional<at::AutoDispatchBelowADInplaceOrView> below;
  if (!wants_grad) below.emplace();
  constexpr double kShortCall = 1 << 17;  // multiply-adds: microseconds
  const double rows = static_cast<double>(input.numel()) / static_cast<double>(input.size(-1)),
               per_row = static_cast<double>(weights[0].numel()) +
                         static_cast<double>(weights[1].numel());
  const double work = rows * per_row * static_cast<double>(weights.size() / (has_biases ? 4 : 2));
  std::optional<py::gil_scoped_release> no_gil;
  if (input.is_cuda() || work > kShortCall) no_gil.emplace();
  try {
    return call_operator();
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {  // Python raises a better error, or this one again
    return std::nullopt;
  }
}

// The operator rnn; on CUDA, the guard's warnings become Python warnings.
std::optional<std::tuple<Tensor, Tensor>> call(const Tensor& input, const OptionalTensor& hx,
                                               TensorList weights, const OptionalTensor& lengths,
                                               const OptionalTensor& reset, bool has_biases,
                                               int64_t num_layers, std::string_view nonlinearity,
                                               bool bidirectional, bool batch_first) {
  const auto op = [&] {
    return rnn(input, hx, weights, std::nullopt, lengths, reset, std::nullopt, has_biases,
               num_layers, nonlinearity, bidirectional, batch_first);
  };
  const bool wanted = wants_grad(input, hx, weights);
  if (!input.is_cuda()) return quietly(input, weights, has_biases, wanted, op);
  const torch::PyWarningHandler warnings;
  return quietly(input, weights, has_biases, wanted, op);
}

// The calls in eager mode. They decline anything out of the ordinary, wrong arguments included, by
// returning None: Python then serves the call, or raises the error.
py::object rnn_eager(py::handle py_input, py::handle py_hx, const py::list& py_weights,
                     bool has_biases, py::handle py_num_layers, std::string_view nonlinearity,
                     py::handle py_bidirectional, bool batch_first, py::handle py_lengths,
                     py::handle py_reset) {
  const Tensor* input = take_input(py_input, 3);
  const std::optional<int64_t> num_layers = integer(py_num_layers);
  Weights weights;
  OptionalTensor hx, lengths, reset;
  if (!input || !num_layers || !py::isinstance<py::bool_>(py_bidirectional) ||
      !take_weights(py_weights, *input, weights) || !take_state(py_hx, input->dim(), *input, hx))
    return py::none();
  const bool batched = input->dim() == 3;
  if (!py_lengths.is_none() || !py_reset.is_none()) {
    if (!batched || !take_marks(py_lengths, py_reset, *input, lengths, reset)) return py::none();
  }
  if (hx && !batched) hx = unsqueezed("hx", *hx, 1);
  auto results = call(batched ? *input : unsqueezed("input", *input, 1), hx, weights, lengths,
                      reset, has_biases, *num_layers, nonlinearity, py_bidirectional.cast<bool>(),
                      batched && batch_first);
  if (!results) return py::none();
  auto& [output, hn] = *results;
  if (!batched) {
    output = output.squeeze(1);
    hn = hn.squeeze(1);
  }
  return py::make_tuple(to_python(std::move(output)), to_python(std::move(hn)));
}

// The leak as rnn_extended takes it: of every unit, or a number.
bool take_alpha(py::handle py_alpha, int64_t states, const Tensor& input, int64_t hidden_size,
                OptionalTensor& alpha, double& alpha_value) {
  if (PyFloat_CheckExact(py_alpha.ptr())) {
    alpha_value = py_alpha.cast<double>();
    return true;
  }
  const Tensor* t = plain_tensor(py_alpha.ptr());
  if (!t || t->device() != input.device() || !t->is_floating_point()) return false;
  check_storage("alpha", *t);
  const int64_t last = t->dim() > 0 ? t->size(-1) : 1, first = t->dim() > 1 ? t->size(0) : 1;
  if (t->dim() > 2 || (last != 1 && last != hidden_size) || (first != 1 && first != states))
    return false;
  alpha = t->expand({states, hidden_size})
              .to(input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  return true;
}

// As rnn_eager, with a leak and every layer's output.
py::object rnn_extended_eager(py::handle py_input, py::handle py_hx, const py::list& py_weights,
                              bool has_biases, py::handle py_num_layers,
                              std::string_view nonlinearity, bool bidirectional, bool batch_first,
                              py::handle py_lengths, py::handle py_reset, py::handle py_alpha,
                              std::string_view form, bool return_layers) {
  const Tensor* input = take_input(py_input, 3);
  const std::optional<int64_t> num_layers = integer(py_num_layers);
  Weights weights;
  OptionalTensor hx, lengths, reset, alpha;
  double alpha_value = 1;
  if (!input || !input->is_cpu() || input->dim() != 3 || !num_layers ||
      !take_weights(py_weights, *input, weights) || weights[1].dim() != 2 ||
      !take_state(py_hx, 3, *input, hx) ||
      !take_marks(py_lengths, py_reset, *input, lengths, reset) || *num_layers <= 0 ||
      *num_layers > std::ssize(weights) ||
      !take_alpha(py_alpha, *num_layers * (bidirectional ? 2 : 1), *input, weights[1].size(1),
                  alpha, alpha_value))
    return py::none();
  const bool wanted = wants_grad(*input, hx, weights) ||
                      (alpha && alpha->requires_grad() && at::GradMode::is_enabled());
  const auto results = quietly(*input, weights, has_biases, wanted, [&] {
    return rnn_extended(*input, hx, weights, std::nullopt, lengths, reset, std::nullopt, has_biases,
                        *num_layers, nonlinearity, bidirectional, batch_first, std::nullopt, alpha,
                        alpha_value, form, return_layers);
  });
  if (!results) return py::none();
  auto [output, hn, layers] = *results;
  if (!return_layers) return py::make_tuple(to_python(std::move(output)), to_python(std::move(hn)));
  return py::make_tuple(to_python(std::move(output)), to_python(std::move(hn)),
                        to_python(batch_first ? layers.transpose(1, 2) : std::move(layers)));
}

// A step's input as a sequence of one, with a batch.
Tensor as_sequence(const Tensor& input) {
  Tensor step = unsqueezed("input", input, 0);
  return input.dim() == 2 ? step : step.unsqueeze(0);
}

// One step of all layers: (B, I) or (I) and (L, B, H) or (L, H) to (B, H) or (H), and the state.
py::object rnn_step_eager(py::handle py_input, py::handle py_hx, const py::list& py_weights,
                          bool has_biases, py::handle py_num_layers,
                          std::string_view nonlinearity) {
  const Tensor* input = take_input(py_input, 2);
  const std::optional<int64_t> num_layers = integer(py_num_layers);
  Weights weights;
  OptionalTensor hx;
  if (!input || !num_layers || !take_weights(py_weights, *input, weights) ||
      !take_state(py_hx, input->dim() + 1, *input, hx))
    return py::none();
  const bool batched = input->dim() == 2;
  if (hx && !batched) hx = unsqueezed("hx", *hx, 1);
  auto results = call(as_sequence(*input), hx, weights, std::nullopt, std::nullopt, has_biases,
                      *num_layers, nonlinearity, /*bidirectional=*/false, /*batch_first=*/false);
  if (!results) return py::none();
  auto& [output, hn] = *results;
  // No views, as in rnn_cell_eager.
  output = at::_unsafe_view(output, output.sizes().slice(batched ? 1 : 2));
  if (!batched) hn = at::_unsafe_view(hn, {hn.size(0), hn.size(2)});
  return py::make_tuple(to_python(std::move(output)), to_python(std::move(hn)));
}

// One step: (B, I) or (I) and (B, H) or (H) to (B, H) or (H).
py::object rnn_cell_eager(py::handle py_input, py::handle py_hx, py::handle w_ih, py::handle w_hh,
                          py::handle b_ih, py::handle b_hh, std::string_view nonlinearity) {
  const Tensor* input = take_input(py_input, 2);
  const bool has_biases = !b_ih.is_none();
  const py::handle py_weights[] = {w_ih, w_hh, b_ih, b_hh};
  Weights weights;
  OptionalTensor hx;
  if (!input || b_hh.is_none() == has_biases ||
      !take_weights(std::span(py_weights, has_biases ? 4 : 2), *input, weights) ||
      !take_state(py_hx, input->dim(), *input, hx))
    return py::none();
  const bool batched = input->dim() == 2;
  if (hx) hx = unsqueezed("hx", *hx, 0);
  if (hx && !batched) hx = hx->unsqueeze(0);
  const auto results = call(as_sequence(*input), hx, weights, std::nullopt, std::nullopt,
                            has_biases, /*num_layers=*/1, nonlinearity, /*bidirectional=*/false,
                            /*batch_first=*/false);
  if (!results) return py::none();
  const Tensor& output = std::get<0>(*results);
  // No view of a batch, so that detach_() works as on nn.RNNCell's result; nothing else sees the
  // memory.
  Tensor h = at::_unsafe_view(output, output.sizes().slice(1));
  return to_python(batched ? std::move(h) : h.squeeze(0));
}

}  // namespace
}  // namespace fastrnn
