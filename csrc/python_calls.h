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
// less helpful error. If nothing is recorded no view is needed, which takes longer to make.
Tensor unsqueezed(const char* name, const Tensor& x, int64_t dim, bool recorded) {
  check_storage(name, x);
  if (recorded) return x.unsqueeze(dim);
  c10::SmallVector<int64_t, 4> sizes(x.sizes()), strides(x.strides());
  strides.insert(strides.begin() + dim, 1);  // of one element: any will do
  sizes.insert(sizes.begin() + dim, 1);
  auto alias = x.unsafeGetTensorImpl()->shallow_copy_and_detach(
      /*version_counter=*/0, /*allow_tensor_metadata_change=*/true);
  alias->set_sizes_and_strides(sizes, strides);
  return Tensor(std::move(alias));
}

// Drops dimensions of 1, `count` from `dim` on, from a result that nothing else refers to. It is no
// view, so that detach_() works as on nn.RNNCell's result.
Tensor without_dims(Tensor x, int64_t dim, int64_t count, bool recorded) {
  c10::SmallVector<int64_t, 4> sizes(x.sizes()), strides(x.strides());
  sizes.erase(sizes.begin() + dim, sizes.begin() + dim + count);
  if (recorded) return at::_unsafe_view(x, sizes);
  strides.erase(strides.begin() + dim, strides.begin() + dim + count);
  x.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return x;
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

using Results = std::optional<std::tuple<Tensor, Tensor>>;

// The operator rnn; on CUDA, the guard's warnings become Python warnings.
Results call(const Tensor& input, const OptionalTensor& hx, TensorList weights,
             const OptionalTensor& lengths, const OptionalTensor& reset, bool has_biases,
             int64_t num_layers, std::string_view nonlinearity, bool bidirectional,
             bool batch_first, bool recorded) {
  const auto op = [&] {
    return rnn(input, hx, weights, std::nullopt, lengths, reset, std::nullopt, has_biases,
               num_layers, nonlinearity, bidirectional, batch_first);
  };
  if (!input.is_cuda()) return quietly(input, weights, has_biases, recorded, op);
  const torch::PyWarningHandler warnings;
  return quietly(input, weights, has_biases, recorded, op);
}

py::object to_python(Results results) {
  if (!results) return py::none();
  auto& [output, hn] = *results;
  return py::make_tuple(to_python(std::move(output)), to_python(std::move(hn)));
}

// The calls in eager mode. They decline anything out of the ordinary, wrong arguments included, by
// returning None: Python then serves the call, or raises the error.

py::object call_sequence(const Tensor& input, py::handle py_hx, const Weights& weights,
                         bool has_biases, int64_t num_layers, std::string_view nonlinearity,
                         bool bidirectional, bool batch_first, py::handle py_lengths,
                         py::handle py_reset) {
  const bool batched = input.dim() == 3;
  OptionalTensor hx, lengths, reset;
  if (!take_state(py_hx, input.dim(), input, hx)) return py::none();
  if (!py_lengths.is_none() || !py_reset.is_none()) {
    if (!batched || !take_marks(py_lengths, py_reset, input, lengths, reset)) return py::none();
  }
  const bool recorded = wants_grad(input, hx, weights);
  if (hx && !batched) hx = unsqueezed("hx", *hx, 1, recorded);
  Results results =
      call(batched ? input : unsqueezed("input", input, 1, recorded), hx, weights, lengths, reset,
           has_biases, num_layers, nonlinearity, bidirectional, batched && batch_first, recorded);
  if (results && !batched) {
    auto& [output, hn] = *results;
    for (Tensor* x : {&output, &hn})
      *x = recorded ? x->squeeze(1) : without_dims(std::move(*x), 1, 1, false);
  }
  return to_python(std::move(results));
}

py::object rnn_eager(py::handle py_input, py::handle py_hx, const py::list& py_weights,
                     bool has_biases, py::handle py_num_layers, std::string_view nonlinearity,
                     py::handle py_bidirectional, bool batch_first, py::handle py_lengths,
                     py::handle py_reset) {
  const Tensor* input = take_input(py_input, 3);
  const std::optional<int64_t> num_layers = integer(py_num_layers);
  Weights weights;
  if (!input || !num_layers || !py::isinstance<py::bool_>(py_bidirectional) ||
      !take_weights(py_weights, *input, weights))
    return py::none();
  return call_sequence(*input, py_hx, weights, has_biases, *num_layers, nonlinearity,
                       py_bidirectional.cast<bool>(), batch_first, py_lengths, py_reset);
}

// A step's input or state as a sequence of one, with a batch.
Tensor as_sequence(const char* name, const Tensor& x, bool recorded) {
  const Tensor step = unsqueezed(name, x, 0, recorded);
  return x.dim() == 2 ? step : unsqueezed(name, step, 1, recorded);
}

// One step of all layers: (B, I) or (I) and (L, B, H) or (L, H) to (B, H) or (H), and the state.
// run(input, hx) takes and returns sequences.
template <typename Run>
py::object call_step(const Tensor& input, const OptionalTensor& hx, bool recorded, const Run& run) {
  const bool batched = input.dim() == 2;
  Results results = run(as_sequence("input", input, recorded),
                        hx && !batched ? OptionalTensor(unsqueezed("hx", *hx, 1, recorded)) : hx);
  if (!results) return py::none();
  auto& [output, hn] = *results;
  output = without_dims(std::move(output), 0, batched ? 1 : 2, recorded);
  if (!batched) hn = without_dims(std::move(hn), 1, 1, recorded);
  return to_python(std::move(results));
}

py::object call_rnn_step(const Tensor& input, py::handle py_hx, const Weights& weights,
                         bool has_biases, int64_t num_layers, std::string_view nonlinearity) {
  OptionalTensor hx;
  if (!take_state(py_hx, input.dim() + 1, input, hx)) return py::none();
  const bool recorded = wants_grad(input, hx, weights);
  return call_step(input, hx, recorded, [&](const Tensor& x, const OptionalTensor& h) {
    return call(x, h, weights, std::nullopt, std::nullopt, has_biases, num_layers, nonlinearity,
                /*bidirectional=*/false, /*batch_first=*/false, recorded);
  });
}

py::object rnn_step_eager(py::handle py_input, py::handle py_hx, const py::list& py_weights,
                          bool has_biases, py::handle py_num_layers,
                          std::string_view nonlinearity) {
  const Tensor* input = take_input(py_input, 2);
  const std::optional<int64_t> num_layers = integer(py_num_layers);
  Weights weights;
  if (!input || !num_layers || !take_weights(py_weights, *input, weights)) return py::none();
  return call_rnn_step(*input, py_hx, weights, has_biases, *num_layers, nonlinearity);
}

// One step: (B, I) or (I) and (B, H) or (H) to (B, H) or (H).
py::object call_cell(const Tensor& input, py::handle py_hx, const Weights& weights, bool has_biases,
                     std::string_view nonlinearity) {
  OptionalTensor hx;
  if (!take_state(py_hx, input.dim(), input, hx)) return py::none();
  const bool recorded = wants_grad(input, hx, weights);
  if (hx) hx = as_sequence("hx", *hx, recorded);
  Results results = call(as_sequence("input", input, recorded), hx, weights, std::nullopt,
                         std::nullopt, has_biases, /*num_layers=*/1, nonlinearity,
                         /*bidirectional=*/false, /*batch_first=*/false, recorded);
  if (!results) return py::none();
  Tensor& output = std::get<0>(*results);
  const bool batched = input.dim() == 2;
  Tensor h = without_dims(std::move(output), 0, batched || recorded ? 1 : 2, recorded);
  // Recorded and without a batch, nn.RNNCell's result is a view.
  return to_python(batched || !recorded ? std::move(h) : h.squeeze(0));
}

py::object rnn_cell_eager(py::handle py_input, py::handle py_hx, py::handle w_ih, py::handle w_hh,
                          py::handle b_ih, py::handle b_hh, std::string_view nonlinearity) {
  const Tensor* input = take_input(py_input, 2);
  const bool has_biases = !b_ih.is_none();
  const py::handle py_weights[] = {w_ih, w_hh, b_ih, b_hh};
  Weights weights;
  if (!input || b_hh.is_none() == has_biases ||
      !take_weights(std::span(py_weights, has_biases ? 4 : 2), *input, weights))
    return py::none();
  return call_cell(*input, py_hx, weights, has_biases, nonlinearity);
}

}  // namespace
}  // namespace fastrnn
