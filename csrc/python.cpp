// The Python module: the direct entry for eager calls, and facts about the build.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/extension.h>

#include <array>
#include <atomic>
#include <span>

#include "arguments.h"
#include "cpu/rnn_cpu.h"
#include "cuda/configurations.h"
#include "ops.h"
#if defined(FASTRNN_WITH_CUDA)
#include "cuda/build.h"
#include "cuda/rnn_cuda.h"
#include "cuda/torch_cuda.h"
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

using Results = std::optional<std::tuple<Tensor, Tensor>>;

// Calls the operator, skipping its autograd key if nothing wants gradients. The GIL is kept if the
// call is shorter than a wait for the GIL might be; never on CUDA, where a launch may wait for what
// another Python thread has yet to do. Returns nothing if the operator, which checks the sizes,
// refuses the arguments.
Results call_quietly(const Tensor& input, const OptionalTensor& hx, TensorList weights,
                     const OptionalTensor& lengths, const OptionalTensor& reset, bool has_biases,
                     int64_t num_layers, std::string_view nonlinearity, bool bidirectional,
                     bool batch_first) {
  std::optional<at::AutoDispatchBelowADInplaceOrView> below;
  if (!wants_grad(input, hx, weights)) below.emplace();
  constexpr double kShortCall = 1 << 17;  // multiply-adds: microseconds
  const double rows = static_cast<double>(input.numel()) / static_cast<double>(input.size(-1)),
               per_row = static_cast<double>(weights[0].numel()) +
                         static_cast<double>(weights[1].numel());
  const double work = rows * per_row * static_cast<double>(weights.size() / (has_biases ? 4 : 2));
  std::optional<py::gil_scoped_release> no_gil;
  if (input.is_cuda() || work > kShortCall) no_gil.emplace();
  try {
    return rnn(input, hx, weights, std::nullopt, lengths, reset, std::nullopt, has_biases,
               num_layers, nonlinearity, bidirectional, batch_first);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {  // Python raises a better error, or this one again
    return std::nullopt;
  }
}

// The same; on CUDA, the guard's warnings become Python warnings.
template <typename... Arguments>
Results call(const Tensor& input, const Arguments&... arguments) {
  if (!input.is_cuda()) return call_quietly(input, arguments...);
  const torch::PyWarningHandler warnings;
  return call_quietly(input, arguments...);
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

// Whether a module's list of weights is up to date: for each name, it holds the same object as the
// dict of parameters. Not by pybind11, which takes longer to pass the arguments. Comparing keys may
// run code that changes the lists.
PyObject* are_weights(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !PyDict_Check(args[0]) || !PyList_Check(args[1]) || !PyList_Check(args[2]))
    Py_RETURN_FALSE;
  PyObject *const parameters = args[0], *const names = args[1], *const weights = args[2];
  bool same = PyList_GET_SIZE(names) == PyList_GET_SIZE(weights);
  for (Py_ssize_t i = 0; same && i < PyList_GET_SIZE(names); ++i) {
    const auto name = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(names, i));
    const PyObject* expected = i < PyList_GET_SIZE(weights) ? PyList_GET_ITEM(weights, i) : nullptr;
    const PyObject* found = PyDict_GetItemWithError(parameters, name.ptr());
    if (!found && PyErr_Occurred()) return nullptr;
    same = found && found == expected;
  }
  return PyBool_FromLong(same);
}

PyMethodDef raw_methods[] = {
    {"are_weights", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(are_weights)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

// For calls that torch's own operators serve; they raise the errors about what is not a tensor.
void check_storages_from_python(const py::list& weights, const py::kwargs& others) {
  for (const auto& [name, x] : others) {
    if (THPVariable_Check(x.ptr()))
      check_storage(name.cast<std::string>().c_str(), THPVariable_Unpack(x.ptr()));
  }
  int64_t index = 0;
  for (py::handle w : weights) {
    if (THPVariable_Check(w.ptr())) check_storage("weights", THPVariable_Unpack(w.ptr()), index);
    ++index;
  }
}

// Keeps a Python function for the C++ backward, which may call it from a thread of the autograd
// engine.
void set_reference_backward_from_python(py::object function) {
  auto* kept =
      new py::object(std::move(function));  // never freed: the interpreter may be gone at exit
  set_reference_backward([kept](const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
                                const Tensor& saved, const std::vector<bool>& wanted,
                                FASTRNN_ARGUMENTS) {
    for (const auto& [name, grad] : {std::pair{"grad_output", &grad_output}, {"grad_hn", &grad_hn}})
      if (*grad) check_storage(name, **grad);
    check_storages(input, hx, weights, batch_sizes, lengths, reset, dropout_mask);
    py::gil_scoped_acquire gil;
    return (*kept)(grad_output, grad_hn, saved, wanted, input, hx, weights.vec(), batch_sizes,
                   lengths, reset, dropout_mask, has_biases, num_layers, nonlinearity,
                   bidirectional, batch_first)
        .cast<std::vector<Tensor>>();
  });
}

// The configurations of the CUDA kernels, whether they are in this build or not: name, dtype, and
// whether float32 is rounded to TF32.
std::vector<std::tuple<std::string, at::ScalarType, bool>> cuda_configurations() {
  std::vector<std::tuple<std::string, at::ScalarType, bool>> all;
  for (const cuda::Configuration& c : cuda::kConfigurations) {
    if (!c.has_groups()) continue;
    for (const auto& [dtype, name] : {std::pair{Dtype::kFloat32, at::kFloat},
                                      {Dtype::kFloat16, at::kHalf},
                                      {Dtype::kBFloat16, at::kBFloat16}}) {
      if (c.takes(dtype, true)) all.emplace_back(name_of(c), name, !c.takes(dtype, false));
    }
  }
  return all;
}

#if defined(FASTRNN_WITH_CUDA)
// As cuda::Checked: name, dtype, rows, error, allowed, fault.
py::list cuda_check(const Tensor& like) {
  std::vector<cuda::Checked> all;
  {
    const py::gil_scoped_release no_gil;
    all = cuda::check_kernels(like);
  }
  py::list found;
  for (const cuda::Checked& c : all)
    found.append(py::make_tuple(c.name, c.dtype, c.rows, c.error, c.allowed, c.fault));
  return found;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  parameter_type = py::object(py::module_::import("torch.nn").attr("Parameter")).release().ptr();
  m.def("rnn", rnn_eager);
  m.def("rnn_step", rnn_step_eager);
  m.def("rnn_cell", rnn_cell_eager);
  if (PyModule_AddFunctions(m.ptr(), raw_methods) < 0) throw py::error_already_set();
  m.def("check_storages", check_storages_from_python);
  m.def("known_activation", known_activation);
  m.def("set_reference_backward", set_reference_backward_from_python);
  m.def("cpu_kernels", cpu::kernels_name);
  m.def("cuda_configurations", cuda_configurations);
#if defined(FASTRNN_WITH_CUDA)
  m.def("cuda_kernels", cuda::architectures);
  m.def("cuda_kernels_hash", cuda::kernels_hash);
  m.def("cuda_missing", [] { return cuda::torch_cuda().missing; });
  m.def("cuda_kernels_for", cuda::kernels_for, py::call_guard<py::gil_scoped_release>());
  m.def("cuda_why_no_kernels", cuda::why_no_kernels, py::call_guard<py::gil_scoped_release>());
  m.def("set_cuda_kernel", cuda::set_kernel);
  m.def("cuda_check", cuda_check);
#endif
  m.def("cpu_prefers_torch", cpu::prefers_torch);
}

}  // namespace fastrnn
