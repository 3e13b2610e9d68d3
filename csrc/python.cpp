// The Python module: the direct entry for eager calls, and facts about the build.
#include "cpu/rnn_cpu.h"
#include "cuda/configurations.h"
#include "python_modules.h"
#if defined(FASTRNN_WITH_CUDA)
#include "cuda/build.h"
#include "cuda/torch_cuda.h"
#endif

namespace fastrnn {
namespace {

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

void set_extended_reference_backward_from_python(py::object function) {
  auto* kept = new py::object(std::move(function));  // never freed, as above
  set_extended_reference_backward([kept](const std::vector<OptionalTensor>& grads,
                                         const std::vector<bool>& wanted, FASTRNN_ARGUMENTS,
                                         FASTRNN_EXTRAS) {
    for (const OptionalTensor& grad : grads)
      if (grad) check_storage("grad", *grad);
    check_storages(input, hx, weights, batch_sizes, lengths, reset, dropout_mask);
    if (gates) check_storage("gates", *gates);
    if (alpha) check_storage("alpha", *alpha);
    py::gil_scoped_acquire gil;
    return (*kept)(grads, wanted, input, hx, weights.vec(), batch_sizes, lengths, reset,
                   dropout_mask, has_biases, num_layers, nonlinearity, bidirectional, batch_first,
                   gates, alpha, alpha_value, form, return_layers)
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
  m.def("rnn_extended", rnn_extended_eager);
  m.def("rnn_step", rnn_step_eager);
  m.def("rnn_cell", rnn_cell_eager);
  m.def("rnn_of_module", rnn_of_module);
  m.def("leaky_of_module", leaky_of_module);
  m.def("step_of_module", step_of_module);
  m.def("leaky_step_of_module", leaky_step_of_module);
  m.def("cell_of_module", cell_of_module);
  m.def("check_storages", check_storages_from_python);
  m.def("known_activation", known_activation);
  m.def("set_reference_backward", set_reference_backward_from_python);
  m.def("set_extended_reference_backward", set_extended_reference_backward_from_python);
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
