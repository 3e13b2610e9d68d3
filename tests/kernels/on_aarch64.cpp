// The raw CPU kernels as a program, for an emulator: reads calls from its input, runs them, and
// writes the results to its output. tests/kernels/on_aarch64.py is at the other end.
//
// It begins with a line: the kernels' name, and 1 if large steps go to torch. A call is the numbers
// of Header, and then arrays, each as its bytes' count (int64; -1: no array) and the bytes. After a
// call the arrays come back, those that it writes to, without their counts.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/stack.h"

using namespace fastrnn;

namespace {

struct Header {
  int64_t backward, dtype, relu, has_biases, num_layers, num_directions, seq_len, batch, input_size,
      hidden_size, threads;
};

// False at the end of the input, where a call may begin.
bool read(void* to, size_t bytes) {
  const size_t count = std::fread(to, 1, bytes, stdin);
  if (count != bytes && count != 0) std::exit(1);
  return count == bytes;
}

class Array {
 public:
  Array() {
    int64_t bytes = 0;
    if (!read(&bytes, sizeof(bytes))) std::exit(1);
    if (bytes < 0) return;
    there_ = true;
    memory_.resize(bytes);
    if (bytes > 0 && !read(memory_.data(), bytes)) std::exit(1);
  }
  template <typename T = void>
  T* data() {
    return there_ ? reinterpret_cast<T*>(memory_.data()) : nullptr;
  }
  void send() const { std::fwrite(memory_.data(), 1, memory_.size(), stdout); }

 private:
  bool there_ = false;
  std::vector<char> memory_;
};

void run(const Header& h, const cpu::Kernels& kernels) {
  const int64_t features = h.num_directions * h.hidden_size;
  const auto sequence = [&](Array& x, int64_t width) {
    return Sequence{x.data(), h.batch * width, width};
  };
  std::vector<Array> weight_arrays(h.num_layers * h.num_directions * (h.has_biases ? 4 : 2));
  Array input, hx, active;
  std::vector<const void*> weights;
  for (Array& w : weight_arrays) weights.push_back(w.data());
  cpu::Stack stack{};
  stack.dtype = static_cast<Dtype>(h.dtype);
  stack.nonlinearity = h.relu ? Nonlinearity::kRelu : Nonlinearity::kTanh;
  stack.has_biases = h.has_biases != 0;
  stack.num_layers = h.num_layers;
  stack.num_directions = h.num_directions;
  stack.input_size = h.input_size;
  stack.hidden_size = h.hidden_size;
  stack.steps.seq_len = h.seq_len;
  stack.steps.batch = h.batch;
  stack.steps.active = active.data<int64_t>();
  stack.input = sequence(input, h.input_size);
  stack.hx = hx.data();
  stack.hx_layer_stride = h.batch * h.hidden_size;
  stack.hx_row_stride = h.hidden_size;
  stack.weights = weights.data();
  const cpu::Plan plan =
      cpu::choose(cpu::problem_of(stack, h.backward != 0),
                  cpu::kernels_for(kernels, stack.dtype).traits, static_cast<int>(h.threads));
  if (!h.backward) {
    Array output, hn, saved;
    cpu::run_forward({stack, sequence(output, features), hn.data(), saved.data()}, kernels, plan);
    for (const Array* x : {&output, &hn, &saved}) x->send();
  } else {
    Array saved, grad_output, grad_hn, grad_input, grad_hx;
    std::vector<Array> grads(weights.size());
    std::vector<void*> grad_weights;
    for (Array& g : grads) grad_weights.push_back(g.data());
    cpu::run_backward({stack, saved.data(), sequence(grad_output, features), grad_hn.data(),
                       sequence(grad_input, h.input_size), grad_hx.data(), grad_weights.data()},
                      kernels, plan);
    grad_input.send();
    grad_hx.send();
    for (const Array& g : grads) g.send();
  }
  std::fflush(stdout);
}

}  // namespace

int main() {
  const cpu::Kernels& kernels = cpu::baseline_kernels();
  const cpu::KernelTraits traits = cpu::kernels_for(kernels, Dtype::kFloat32).traits;
  std::printf("%s %d\n", kernels.name, cpu::torch_step_work(traits) != cpu::kNever);
  std::fflush(stdout);
  for (Header header; read(&header, sizeof(header));) run(header, kernels);
}
