// The operators on the CPU: tensors to structs.
#include "cpu/rnn_cpu.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "arguments.h"
#include "by_torch.h"
#include "cpu/stack.h"
#include "cpu/workspace.h"
#include "extras.h"

namespace fastrnn::cpu {
namespace {

const Kernels& chosen_kernels() {
  static const Kernels& kernels = select_kernels(at::get_cpu_capability().c_str());
  return kernels;
}

int64_t least_step_of_torch() {
  static const int64_t work =
      torch_step_work(kernels_for(chosen_kernels(), Dtype::kFloat32).traits);
  return work;
}

// Whether the call goes to torch's own operator.
bool goes_to_torch(FASTRNN_ARGUMENTS) {
  if (least_step_of_torch() == kNever || !torch_can_serve(input, lengths, reset, dropout_mask))
    return false;
  const Shape s = check(FASTRNN_PASS);
  return prefers_torch(s.batch, s.hidden_size);
}

Plan plan_for(const Stack& stack, bool backward, bool may_pack) {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  Problem problem = problem_of(stack, backward);
  problem.may_pack = may_pack;
  return choose(problem, kernels_for(chosen_kernels(), stack.dtype).traits, threads);
}

// at::empty without the dispatcher, but with its NaNs in deterministic mode.
Tensor new_tensor(at::IntArrayRef sizes, const Tensor& like) {
  const at::Context& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) {
    return at::empty(sizes, like.options());
  }
  return at::detail::empty_cpu(sizes, like.scalar_type());
}

// The struct of a call, with all that its pointers point to.
struct Call : Arguments {
  Stack stack{};
  c10::SmallVector<const void*, 8> weight_data;
  std::vector<int64_t> order;  // of rows, longest first

  explicit Call(FASTRNN_ARGUMENTS) : Arguments(FASTRNN_PASS) {
    stack.dtype = dtype;
    stack.nonlinearity = shape.nonlinearity;
    stack.has_biases = has_biases;
    stack.num_layers = shape.num_layers;
    stack.num_directions = shape.num_directions;
    stack.input_size = shape.input_size;
    stack.hidden_size = shape.hidden_size;
    stack.input = sequence(*this->input);
    for (const MaybeOwned& w : this->weights) weight_data.push_back(w->const_data_ptr());
    stack.weights = weight_data.data();
    if (hx) {
      stack.hx = this->hx->const_data_ptr();
      stack.hx_layer_stride = this->hx->stride(0);
      stack.hx_row_stride = this->hx->stride(1);
    }
    if (dropout_mask) stack.dropout_mask = this->dropout_mask->const_data_ptr();
    Steps& steps = stack.steps;
    steps.seq_len = shape.seq_len;
    steps.batch = shape.batch;
    if (packed) {
      steps.start = start.data();
      steps.active = active.data();
    }
    if (lengths) sort_rows(*lengths);
    steps.reset = reset_data;
    steps.reset_step_stride = reset_step_stride;
    steps.reset_row_stride = reset_row_stride;
  }

  // A new (T, B, features) tensor in the caller's layout; positions beyond a row's length are zero.
  Tensor new_sequence(int64_t features, bool time_major) const {
    if (packed) return new_tensor({shape.rows, features}, *input);
    const bool swapped = batch_first && !time_major;
    Tensor x = new_tensor(
        {swapped ? shape.batch : shape.seq_len, swapped ? shape.seq_len : shape.batch, features},
        *input);
    if (lengths) x.zero_();
    return batch_first && time_major ? x.transpose(0, 1) : x;
  }

  Tensor new_state() const {
    return new_tensor({shape.states(), shape.batch, shape.hidden_size}, *input);
  }

 private:
  void sort_rows(const Tensor& lengths) {
    const Tensor values = lengths.clone(at::MemoryFormat::Contiguous);  // others may write to them
    const int64_t* length = values.const_data_ptr<int64_t>();
    active = zeros(shape.seq_len);
    for (int64_t b = 0; b < shape.batch; ++b) {
      TORCH_CHECK_VALUE(length[b] >= 0 && length[b] <= shape.seq_len,
                        "rnn: expected lengths between 0 and ", shape.seq_len, ", got ", length[b],
                        " for row ", b);
      if (length[b] > 0) ++active[length[b] - 1];
    }
    for (int64_t t = shape.seq_len - 1; t > 0; --t) active[t - 1] += active[t];
    order = zeros(shape.batch);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return length[a] > length[b]; });
    stack.steps.active = active.data();
    stack.steps.order = order.data();
  }
};

// If there is no memory for packed weights, run again with the weights as they came.
template <typename Run, typename Task>
void run(const Run& run_task, const Task& task, const Call& call, bool backward) {
  for (const bool may_pack : {true, false}) {
    try {
      return run_task(task, chosen_kernels(), plan_for(call.stack, backward, may_pack));
    } catch (const OutOfMemory& e) {
      if (!may_pack) out_of_memory(e.bytes);
    }
  }
}

// The same of rnn_extended.
struct ExtendedCall : Call {
  Extras extras;

  ExtendedCall(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS)
      : Call(FASTRNN_PASS), extras(*this, FASTRNN_PASS_EXTRAS) {
    stack.extended = true;
    if (gates) {
      stack.gates = extras.gates->const_data_ptr();
      stack.gate_layers = extras.gate_layers;
    }
    stack.leak = extras.leak;
    if (extras.leak == Leak::kNone) return;
    alpha_ = dtype == Dtype::kFloat64 ? padded_alpha<double>() : padded_alpha<float>();
    stack.alpha = alpha_.const_data_ptr();
    if (!hx) return;
    leaky_hx_ = this->hx->contiguous();
    stack.leaky_hx = stack.hx = leaky_hx_.const_data_ptr();
    stack.hx_layer_stride = leaky_hx_.stride(0);
    stack.hx_row_stride = leaky_hx_.stride(1);
    if (extras.leak == Leak::kRate) return;
    active_hx_ = new_state();
    stack.hx = active_hx_.const_data_ptr();
    kernels_for(chosen_kernels(), dtype)
        .activate(active_hx_.mutable_data_ptr(), stack.leaky_hx, leaky_hx_.numel(),
                  shape.nonlinearity);
  }

  Tensor new_layers(int64_t count) const {
    Tensor x = new_tensor(layers_shape(shape, count, packed), *input);
    if (lengths) x.zero_();
    return x;
  }

 private:
  template <typename C>
  Tensor padded_alpha() const {
    const int64_t H = shape.hidden_size;
    Tensor all = at::detail::empty_cpu({shape.states(), padded(H)}, c10::CppTypeToScalarType<C>());
    C* const values = all.mutable_data_ptr<C>();
    std::fill_n(values, all.numel(), static_cast<C>(extras.alpha_value));
    if (!extras.alpha) return all;
    const MaybeOwned given = extras.alpha->expect_contiguous();
    for (int64_t i = 0; i < shape.states(); ++i)
      std::copy_n(given->const_data_ptr<C>() + i * H, H, values + i * padded(H));
    return all;
  }

  Tensor alpha_, leaky_hx_, active_hx_;
};

// What a leaky call keeps besides the states, behind them.
const void* second_half(const void* data, const Tensor& saved) {
  return static_cast<const char*>(data) + saved.nbytes() / 2;
}

// Runs the call. saved: where the output of every layer goes, or undefined; if the call keeps more,
// its second half takes that.
std::tuple<Tensor, Tensor> forward(const Call& call, const Tensor& saved, bool keeps = false) {
  Tensor output = call.new_sequence(call.shape.features(), true);
  Tensor hn = call.new_state();
  void* const states = saved.defined() ? saved.mutable_data_ptr() : nullptr;
  void* const kept = keeps ? const_cast<void*>(second_half(states, saved)) : nullptr;
  const Forward task{call.stack, call.sequence(output), hn.mutable_data_ptr(), states, kept};
  run(run_forward, task, call, false);
  return {output, hn};
}

std::tuple<Tensor, Tensor> rnn_cpu(FASTRNN_ARGUMENTS) {
  if (goes_to_torch(FASTRNN_PASS)) return rnn_by_torch(FASTRNN_PASS);
  return forward(Call(FASTRNN_PASS), Tensor());
}

std::tuple<Tensor, Tensor, Tensor> rnn_forward_cpu(FASTRNN_ARGUMENTS, bool save) {
  const Call call(FASTRNN_PASS);
  const Tensor saved =
      new_tensor({save ? call.shape.num_layers : 0, call.shape.rows, call.shape.features()}, input);
  auto [output, hn] = forward(call, save ? saved : Tensor());
  return {output, hn, saved};
}

// Of input, hx and weights.
using Grads = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

// Runs the backward pass of a call; `backward` has what a plain call does not.
Grads backward(const Call& call, Backward backward, const OptionalTensor& grad_output,
               const OptionalTensor& grad_hn, const Tensor& saved, const Tensor& input,
               TensorList weights, bool want_input, bool want_hx, bool want_weights,
               bool keeps = false) {
  const Shape& s = call.shape;
  const Gradients grads(call, grad_output, grad_hn, saved, (keeps ? 2 : 1) * s.num_layers);
  backward.stack = call.stack;
  backward.saved = saved.const_data_ptr();
  if (keeps) backward.kept = second_half(backward.saved, saved);
  if (grad_output) backward.grad_output = call.sequence(*grads.output);
  if (grad_hn) backward.grad_hn = grads.hn->const_data_ptr();
  // Results may not share memory with one another, not even empty ones.
  Tensor grad_input = new_tensor({0}, input), grad_hx = new_tensor({0}, input);
  if (want_input) {
    grad_input = call.new_sequence(s.input_size, false);
    if (call.packed && input.size(0) != s.rows)
      grad_input = new_tensor(input.sizes(), input).zero_();
    backward.grad_input = call.sequence(grad_input);
  }
  if (want_hx) {
    grad_hx = call.new_state();
    backward.grad_hx = grad_hx.mutable_data_ptr();
  }
  std::vector<Tensor> grad_weights;
  c10::SmallVector<void*, 8> grad_weight_data;
  if (want_weights) {
    grad_weights.reserve(weights.size());
    for (const Tensor& w : weights) {
      grad_weights.push_back(new_tensor(w.sizes(), w));
      grad_weight_data.push_back(grad_weights.back().mutable_data_ptr());
      if (s.batch == 0) grad_weights.back().zero_();
    }
    backward.grad_weights = grad_weight_data.data();
  }
  if (s.batch > 0) run(run_backward, backward, call, true);  // else of any number of steps
  if (want_hx && call.reset) grad_hx = call.without_begun(grad_hx);
  return {grad_input, grad_hx, std::move(grad_weights)};
}

Grads rnn_backward_cpu(const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
                       const Tensor& saved, FASTRNN_ARGUMENTS, bool want_input, bool want_hx,
                       bool want_weights) {
  const Call call(FASTRNN_PASS);
  return backward(call, Backward{}, grad_output, grad_hn, saved, input, weights, want_input,
                  want_hx, want_weights);
}

std::tuple<Tensor, Tensor, Tensor> rnn_extended_cpu(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS) {
  const ExtendedCall call(FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
  if (!return_layers) {
    auto [output, hn] = forward(call, Tensor());
    return {output, hn, new_tensor({0}, input)};
  }
  const Tensor layers = call.new_layers(num_layers);
  auto [output, hn] = forward(call, layers);
  return {output, hn, layers};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_extended_forward_cpu(FASTRNN_ARGUMENTS,
                                                                    FASTRNN_EXTRAS) {
  const ExtendedCall call(FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
  const Shape& s = call.shape;
  const bool keeps = call.extras.keeps();
  const Tensor saved = new_tensor({(keeps ? 2 : 1) * num_layers, s.rows, s.features()}, input);
  if (return_layers && lengths) saved.zero_();
  auto [output, hn] = forward(call, saved, keeps);
  // What is saved is another tensor than what the caller may write to.
  const Tensor layers =
      return_layers
          ? saved.narrow(0, 0, num_layers).clone().view(layers_shape(s, num_layers, call.packed))
          : new_tensor({0}, input);
  return {output, hn, layers, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> rnn_extended_backward_cpu(
    const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const OptionalTensor& grad_layers, const Tensor& saved, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS,
    bool want_input, bool want_hx, bool want_weights, bool want_gates, bool want_alpha) {
  const ExtendedCall call(FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
  const Shape& s = call.shape;
  TORCH_CHECK((!want_gates || gates) && (!want_alpha || alpha),
              "rnn_extended_backward: expected gates and alpha if their gradients are wanted");
  Backward task{};
  MaybeOwned layers;
  if (grad_layers) {
    layers = check_grad_layers(call, *grad_layers);
    task.grad_layers = layers->const_data_ptr();
  }
  Tensor grad_gates = new_tensor({0}, input), grad_alpha = new_tensor({0}, input);
  if (want_gates) {
    grad_gates = call.new_layers(call.extras.gate_layers);
    task.grad_gates = grad_gates.mutable_data_ptr();
  }
  if (want_alpha) {
    grad_alpha = at::empty_like(*alpha, at::MemoryFormat::Contiguous);
    if (s.batch == 0) grad_alpha.zero_();
    task.grad_alpha = grad_alpha.mutable_data_ptr();
  }
  auto [grad_input, grad_hx, grad_weights] =
      backward(call, task, grad_output, grad_hn, saved, input, weights, want_input, want_hx,
               want_weights, call.extras.keeps());
  if (want_gates && gates->sizes() != grad_gates.sizes()) {  // packed data with more rows
    const Tensor found = grad_gates;
    grad_gates = new_tensor(gates->sizes(), input).zero_();
    grad_gates.narrow(1, 0, s.rows).copy_(found);
  }
  return {grad_input, grad_hx, std::move(grad_weights), grad_gates, grad_alpha};
}

std::tuple<Tensor, Tensor> rnn_autograd_cpu(FASTRNN_ARGUMENTS) {
  return rnn_autograd(FASTRNN_PASS, goes_to_torch);
}

}  // namespace

const char* kernels_name() { return chosen_kernels().name; }

bool prefers_torch(int64_t batch, int64_t hidden_size) {
  const double rows = static_cast<double>(batch), H = static_cast<double>(hidden_size);
  return rows * H * H >= static_cast<double>(least_step_of_torch());
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("rnn", rnn_cpu);
  m.impl("rnn_forward", rnn_forward_cpu);
  m.impl("rnn_backward", rnn_backward_cpu);
  m.impl("rnn_extended", rnn_extended_cpu);
  m.impl("rnn_extended_forward", rnn_extended_forward_cpu);
  m.impl("rnn_extended_backward", rnn_extended_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastrnn, AutogradCPU, m) { m.impl("rnn", rnn_autograd_cpu); }

}  // namespace fastrnn::cpu
