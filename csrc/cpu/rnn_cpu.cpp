// The operators on the CPU: tensors to structs.
#include "cpu/rnn_cpu.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rnn_relu_ops.h>
#include <ATen/ops/rnn_tanh_ops.h>
#include <ATen/ops/zeros.h>
#include <c10/util/MaybeOwned.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "checks.h"
#include "cpu/stack.h"

namespace fastrnn::cpu {
namespace {

const Kernels& chosen_kernels() {
  static const Kernels& kernels = select_kernels(at::get_cpu_capability().c_str());
  return kernels;
}

int64_t least_step_of_aten() {
  static const int64_t work = aten_step_work(kernels_for(chosen_kernels(), Dtype::kFloat32).traits);
  return work;
}

Plan plan_for(const Stack& stack, bool backward) {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return choose(problem_of(stack, backward), kernels_for(chosen_kernels(), stack.dtype).traits,
                threads);
}

// at::empty without its way through the dispatcher, but with its NaNs in deterministic mode.
Tensor new_tensor(at::IntArrayRef sizes, const Tensor& like) {
  const at::Context& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) {
    return at::empty(sizes, like.options());
  }
  return at::detail::empty_cpu(sizes, like.scalar_type());
}

using MaybeOwned = c10::MaybeOwned<Tensor>;

MaybeOwned contiguous_features(const Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? MaybeOwned::borrowed(x)
                                              : MaybeOwned::owned(x.contiguous());
}

// The struct of a call, with all that its pointers point to.
struct Call {
  Shape shape;
  Stack stack{};
  MaybeOwned input, hx, dropout_mask;
  c10::SmallVector<MaybeOwned, 8> weights;
  c10::SmallVector<const void*, 8> weight_data;
  std::vector<int64_t> start, active, order;
  bool packed, batch_first, ragged;

  explicit Call(FASTRNN_ARGUMENTS)
      : shape(check(FASTRNN_PASS)),
        packed(batch_sizes.has_value()),
        batch_first(batch_first),
        ragged(lengths.has_value()) {
    this->input = contiguous_features(input);
    stack.dtype = dtype_of(input);
    stack.nonlinearity = shape.nonlinearity;
    stack.has_biases = has_biases;
    stack.num_layers = shape.num_layers;
    stack.num_directions = shape.num_directions;
    stack.input_size = shape.input_size;
    stack.hidden_size = shape.hidden_size;
    stack.input = sequence(*this->input);
    for (const Tensor& w : weights) {
      this->weights.push_back(w.expect_contiguous());
      weight_data.push_back(this->weights.back()->const_data_ptr());
    }
    stack.weights = weight_data.data();
    if (hx) {
      this->hx = reset ? MaybeOwned::owned(without_begun(*hx, shape, *reset, lengths, batch_first))
                       : contiguous_features(*hx);
      stack.hx = this->hx->const_data_ptr();
      stack.hx_layer_stride = this->hx->stride(0);
      stack.hx_row_stride = this->hx->stride(1);
    }
    if (dropout_mask) {
      const bool more_rows = packed && input.size(0) != shape.rows;
      this->dropout_mask =
          more_rows ? MaybeOwned::owned(dropout_mask->narrow(1, 0, shape.rows).contiguous())
                    : dropout_mask->expect_contiguous();
      stack.dropout_mask = this->dropout_mask->const_data_ptr();
    }
    Steps& steps = stack.steps;
    steps.seq_len = shape.seq_len;
    steps.batch = shape.batch;
    if (batch_sizes) {
      const int64_t* sizes = batch_sizes->const_data_ptr<int64_t>();
      active.assign(sizes, sizes + shape.seq_len);
      start.resize(shape.seq_len);
      std::exclusive_scan(active.begin(), active.end(), start.begin(), int64_t{0});
      steps.start = start.data();
      steps.active = active.data();
    }
    if (lengths) sort_rows(*lengths);
    if (reset) {
      steps.reset = reset->const_data_ptr<bool>();
      steps.reset_step_stride = reset->stride(batch_first ? 1 : 0);
      steps.reset_row_stride = reset->stride(batch_first ? 0 : 1);
    }
  }

  // A tensor in the input's layout: padded (T, B, F) or (B, T, F), or packed (rows, F).
  Sequence sequence(const Tensor& x) const {
    void* data = const_cast<void*>(x.const_data_ptr());
    if (packed) return {data, 0, x.stride(0)};
    return {data, x.stride(batch_first ? 1 : 0), x.stride(batch_first ? 0 : 1)};
  }

  // A new (T, B, features) tensor in the caller's layout; positions beyond a row's length are zero.
  Tensor new_sequence(int64_t features, bool time_major) const {
    if (packed) return new_tensor({shape.rows, features}, *input);
    const bool swapped = batch_first && !time_major;
    Tensor x = new_tensor(
        {swapped ? shape.batch : shape.seq_len, swapped ? shape.seq_len : shape.batch, features},
        *input);
    if (ragged) x.zero_();
    return batch_first && time_major ? x.transpose(0, 1) : x;
  }

  int64_t features() const { return shape.num_directions * shape.hidden_size; }

  Tensor new_state() const {
    return new_tensor({shape.num_layers * shape.num_directions, shape.batch, shape.hidden_size},
                      *input);
  }

 private:
  void sort_rows(const Tensor& lengths) {
    const Tensor values = lengths.contiguous();
    const int64_t* length = values.const_data_ptr<int64_t>();
    active.assign(shape.seq_len, 0);
    for (int64_t b = 0; b < shape.batch; ++b) {
      TORCH_CHECK_VALUE(length[b] >= 0 && length[b] <= shape.seq_len,
                        "rnn: expected lengths between 0 and ", shape.seq_len, ", got ", length[b],
                        " for row ", b);
      if (length[b] > 0) ++active[length[b] - 1];
    }
    for (int64_t t = shape.seq_len - 1; t > 0; --t) active[t - 1] += active[t];
    order.resize(shape.batch);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return length[a] > length[b]; });
    stack.steps.active = active.data();
    stack.steps.order = order.data();
  }
};

// Runs the call; saved is where the output of every layer goes, or undefined.
std::tuple<Tensor, Tensor> forward(const Call& call, const Tensor& saved) {
  Tensor output = call.new_sequence(call.features(), true);
  Tensor hn = call.new_state();
  void* kept = saved.defined() ? saved.mutable_data_ptr() : nullptr;
  run_forward({call.stack, call.sequence(output), hn.mutable_data_ptr(), kept}, chosen_kernels(),
              plan_for(call.stack, false));
  return {output, hn};
}

std::tuple<Tensor, Tensor> rnn_cpu(FASTRNN_ARGUMENTS) {
  if (auto results = rnn_by_aten(FASTRNN_PASS)) return *results;
  return forward(Call(FASTRNN_PASS), Tensor());
}

std::tuple<Tensor, Tensor, Tensor> rnn_forward_cpu(FASTRNN_ARGUMENTS, bool save) {
  const Call call(FASTRNN_PASS);
  const Tensor saved =
      new_tensor({save ? call.shape.num_layers : 0, call.shape.rows, call.features()}, input);
  auto [output, hn] = forward(call, save ? saved : Tensor());
  return {output, hn, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> rnn_backward_cpu(const OptionalTensor& grad_output,
                                                                 const OptionalTensor& grad_hn,
                                                                 const Tensor& saved,
                                                                 FASTRNN_ARGUMENTS, bool want_input,
                                                                 bool want_hx, bool want_weights) {
  const Call call(FASTRNN_PASS);
  const Shape& s = call.shape;
  const int64_t features = call.features();
  check_tensor("saved", saved, {s.num_layers, s.rows, features}, input);
  TORCH_CHECK(saved.is_contiguous(), "rnn_backward: expected saved to be contiguous");
  Backward backward{};
  backward.stack = call.stack;
  backward.saved = saved.const_data_ptr();
  MaybeOwned grad_out, grad_last;
  if (grad_output) {
    if (call.packed) {
      check_tensor("grad_output", *grad_output, {s.rows, features}, input);
    } else {
      const int64_t first = batch_first ? s.batch : s.seq_len,
                    second = batch_first ? s.seq_len : s.batch;
      check_tensor("grad_output", *grad_output, {first, second, features}, input);
    }
    grad_out = contiguous_features(*grad_output);
    backward.grad_output = call.sequence(*grad_out);
  }
  if (grad_hn) {
    check_tensor("grad_hn", *grad_hn, {s.num_layers * s.num_directions, s.batch, s.hidden_size},
                 input);
    grad_last = grad_hn->expect_contiguous();
    backward.grad_hn = grad_last->const_data_ptr();
  }
  // Results may not share memory with one another, not even where they have none.
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
    }
    backward.grad_weights = grad_weight_data.data();
  }
  run_backward(backward, chosen_kernels(), plan_for(call.stack, true));
  if (want_hx && reset) grad_hx = without_begun(grad_hx, s, *reset, lengths, batch_first);
  return {grad_input, grad_hx, std::move(grad_weights)};
}

}  // namespace

const char* kernels_name() { return chosen_kernels().name; }

bool prefers_aten(int64_t batch, int64_t hidden_size) {
  return batch * hidden_size * hidden_size >= least_step_of_aten();
}

std::optional<std::tuple<Tensor, Tensor>> rnn_by_aten(FASTRNN_ARGUMENTS) {
  if (least_step_of_aten() == kNever || !input.is_cpu() || lengths || reset || dropout_mask ||
      input.unsafeGetTensorImpl()->is_python_dispatch() ||
      input.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    return std::nullopt;
  }
  const Shape s = check(FASTRNN_PASS);
  if (!prefers_aten(s.batch, s.hidden_size)) return std::nullopt;
  const Tensor state =
      hx ? *hx
         : at::zeros({s.num_layers * s.num_directions, s.batch, s.hidden_size}, input.options());
  const bool is_relu = s.nonlinearity == Nonlinearity::kRelu;
  if (batch_sizes) {
    const auto run = is_relu ? at::_ops::rnn_relu_data::call : at::_ops::rnn_tanh_data::call;
    return run(input, *batch_sizes, state, weights, has_biases, num_layers, 0.0, false,
               bidirectional);
  }
  const auto run = is_relu ? at::_ops::rnn_relu_input::call : at::_ops::rnn_tanh_input::call;
  return run(input, state, weights, has_biases, num_layers, 0.0, false, bidirectional, batch_first);
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("rnn", rnn_cpu);
  m.impl("rnn_forward", rnn_forward_cpu);
  m.impl("rnn_backward", rnn_backward_cpu);
}

}  // namespace fastrnn::cpu
