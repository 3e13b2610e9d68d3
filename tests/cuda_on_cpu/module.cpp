// The CUDA half on the CPU, for the tests: the operators' own orchestration and kernels, compiled
// by a C++ compiler, over CPU tensors.
#include <torch/extension.h>

#include "cuda/choose.h"
#include "cuda/stack.h"

namespace fastrnn::cuda {
namespace {

using Arguments =
    std::tuple<Tensor, OptionalTensor, std::vector<Tensor>, OptionalTensor, OptionalTensor,
               OptionalTensor, OptionalTensor, bool, int64_t, std::string, bool, bool>;

// "tile" forces that kernel on an H200, "tile@16" on one with 16 multiprocessors.
Context context_of(const std::string& forced, bool tf32) {
  const size_t at = forced.find('@');
  const int multiprocessors = at == std::string::npos ? 132 : std::stoi(forced.substr(at + 1));
  const Device h200{90, multiprocessors, 227 << 10, 228 << 10, 65536};
  return {nullptr, h200, tf32, forced.substr(0, at)};
}

auto run_forward(const std::string& forced, bool tf32, const Arguments& arguments, bool save) {
  return std::apply([&](const auto&... a) { return forward(context_of(forced, tf32), a..., save); },
                    arguments);
}

auto run_backward(const std::string& forced, bool tf32, const OptionalTensor& grad_output,
                  const OptionalTensor& grad_hn, const Tensor& saved, const Arguments& arguments,
                  bool want_input, bool want_hx, bool want_weights) {
  return std::apply(
      [&](const auto&... a) {
        return backward(context_of(forced, tf32), grad_output, grad_hn, saved, a..., want_input,
                        want_hx, want_weights);
      },
      arguments);
}

// name, rows, threads, registers, shared bytes, and whether it can be launched
auto run_choose(int dtype, bool backward, bool tf32, int64_t seq_len, int64_t batch,
                int64_t hidden_size, int num_directions, const std::vector<int>& device,
                const std::string& forced, bool torch_can_serve) {
  const Device d{device[0], device[1], device[2], device[3], device[4]};
  const Choice c = choose({static_cast<Dtype>(dtype), backward, tf32, seq_len, batch, hidden_size,
                           num_directions, torch_can_serve},
                          d, forced);
  return std::tuple(std::string(name_of(c.kernel)), c.rows, c.threads, c.registers, c.shared_bytes,
                    can_launch(c, d));
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", run_forward);
  m.def("backward", run_backward);
  m.def("choose", run_choose, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg(), py::arg(), py::arg("torch_can_serve") = false);
}

}  // namespace fastrnn::cuda
