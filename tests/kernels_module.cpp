// The raw CPU kernels on NumPy arrays, for the tests: no torch, any instruction set that the
// machine has.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cpu/stack.h"

namespace py = pybind11;
using fastrnn::Dtype;
namespace cpu = fastrnn::cpu;

namespace {

bool available(const std::string& isa) { return cpu::find_kernels(isa.c_str()) != nullptr; }

// input (T, B, I); weights for each layer and direction; lengths sorted, longest first, or empty;
// arrays C-contiguous.
struct Problem {
  cpu::Stack stack{};
  std::vector<const void*> weights;
  std::vector<int64_t> active;

  Problem(const py::array& input, const std::vector<py::array>& weight_arrays, const py::object& hx,
          const std::vector<int64_t>& lengths, int dtype, bool relu, bool has_biases,
          int64_t layers, bool bidirectional) {
    stack.dtype = static_cast<Dtype>(dtype);
    stack.relu = relu;
    stack.has_biases = has_biases;
    stack.num_layers = layers;
    stack.num_directions = bidirectional ? 2 : 1;
    stack.input_size = input.shape(2);
    stack.hidden_size = weight_arrays[1].shape(0);
    const int64_t T = input.shape(0), B = input.shape(1);
    stack.steps = {T, B, nullptr, nullptr, nullptr, nullptr, 0, 0};
    if (!lengths.empty()) {
      for (int64_t t = 0; t < T; ++t) {
        int64_t n = 0;
        for (int64_t length : lengths) n += length > t;
        active.push_back(n);
      }
      stack.steps.active = active.data();
    }
    stack.input = sequence(input);
    for (const py::array& w : weight_arrays) weights.push_back(w.data());
    stack.weights = weights.data();
    if (!hx.is_none()) {
      stack.hx = hx.cast<py::array>().data();
      stack.hx_layer_stride = B * stack.hidden_size;
      stack.hx_row_stride = stack.hidden_size;
    }
  }

  static fastrnn::Sequence sequence(const py::array& x) {
    return {const_cast<void*>(x.data()), x.shape(1) * x.shape(2), x.shape(2)};
  }
};

void forward(const std::string& isa, int threads, py::array output, py::array hn,
             const py::object& saved, const py::array& input, const std::vector<py::array>& weights,
             const py::object& hx, const std::vector<int64_t>& lengths, int dtype, bool relu,
             bool has_biases, int64_t layers, bool bidirectional) {
  const Problem p(input, weights, hx, lengths, dtype, relu, has_biases, layers, bidirectional);
  void* kept = saved.is_none() ? nullptr : saved.cast<py::array>().mutable_data();
  cpu::run_forward({p.stack, Problem::sequence(output), hn.mutable_data(), kept},
                   *cpu::find_kernels(isa.c_str()), threads);
}

void backward(const std::string& isa, int threads, const py::array& saved,
              const py::array& grad_output, const py::array& grad_hn, py::array grad_input,
              py::array grad_hx, std::vector<py::array> grad_weights, const py::array& input,
              const std::vector<py::array>& weights, const py::object& hx,
              const std::vector<int64_t>& lengths, int dtype, bool relu, bool has_biases,
              int64_t layers, bool bidirectional) {
  const Problem p(input, weights, hx, lengths, dtype, relu, has_biases, layers, bidirectional);
  std::vector<void*> grads;
  for (py::array& g : grad_weights) grads.push_back(g.mutable_data());
  cpu::run_backward({p.stack, saved.data(), Problem::sequence(grad_output), grad_hn.data(),
                     Problem::sequence(grad_input), grad_hx.mutable_data(), grads.data()},
                    *cpu::find_kernels(isa.c_str()), threads);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("available", available);
  m.def("forward", forward);
  m.def("backward", backward);
}
