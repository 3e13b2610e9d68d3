// The gradients of a layer's weights: by cuBLAS over all steps or, with few rows, in one launch.
#include <ATen/ops/sum.h>

#include "cuda/layer.h"

namespace fastrnn::cuda {
namespace {

// h_prev of all rows, for when it is not the output shifted by a step.
Tensor previous_states(const Call& call, const Tensor& h, int64_t index, bool reverse) {
  const Tensor previous = call.empty({call.shape.rows, call.shape.hidden_size});
  const PreviousStates task{.dtype = call.dtype,
                            .rows = call.rows,
                            .hidden_size = call.shape.hidden_size,
                            .reverse = reverse,
                            .output = call.dense(h),
                            .hx = call.hx->defined() ? (*call.hx)[index].const_data_ptr() : nullptr,
                            .hx_row_stride = call.hx->defined() ? call.hx->stride(1) : 0,
                            .previous = call.dense(previous)};
  check_launch(launch_previous_states(task, call.context.stream), "previous_states_kernel",
               call.shape);
  return previous;
}

// grad_w_hh = grad_pre^T @ h_prev. If h_prev is the output shifted by a step, it is read from
// there, and the first step's from hx.
void recurrent_weight_grad(const Call& call, const Tensor& grad_pre, const Tensor& h, int64_t index,
                           bool reverse, const Tensor& grad) {
  const int64_t B = call.shape.batch, rows = call.shape.rows, rest = rows - B;
  const bool tf32 = call.context.tf32;
  const Matrix out(grad), g = Matrix(grad_pre).transposed();
  if (call.packed || call.reset || (call.lengths && reverse)) {
    return multiply(out, g, Matrix(previous_states(call, h, index, reverse)), tf32);
  }
  const auto part = [&](int64_t first, int64_t count) {
    return Matrix(grad_pre).some_rows(first, count).transposed();
  };
  const bool both = rest > 0 && call.hx->defined();
  // With two sums in 16 bits, the first would be rounded.
  const Tensor sum = both && call.is_narrow() ? call.empty(grad.sizes(), at::kFloat) : grad;
  const Matrix to(sum);
  if (rest > 0)
    multiply(to, part(reverse ? 0 : B, rest), Matrix(h).some_rows(reverse ? B : 0, rest), tf32);
  if (call.hx->defined()) {
    multiply(to, part(reverse ? rest : 0, B), Matrix((*call.hx)[index]), tf32, rest > 0);
  } else if (rest == 0) {
    grad.zero_();
  }
  if (!sum.is_same(grad)) grad.copy_(sum);
}

// In one launch.
void in_one_launch(const Call& call, const Layer& layer, const Input& input,
                   std::vector<Tensor>& grads) {
  WeightGrads task{.dtype = call.dtype,
                   .rows = call.rows,
                   .input_size = input.features,
                   .hidden_size = call.shape.hidden_size,
                   .input = input.sequence(call),
                   .num_directions = static_cast<int>(call.shape.num_directions),
                   .direction = {}};
  for (int d = 0; d < task.num_directions; ++d) {
    const int64_t index = layer.first + d;
    Tensor* const to = &grads[index * call.per_index()];
    const auto bias = [&](int k) { return call.has_biases ? to[k].mutable_data_ptr() : nullptr; };
    task.direction[d] = {.reverse = d == 1,
                         .grad_pre = call.dense(call.direction(layer.grad_pre, d)),
                         .output = call.dense(call.direction(layer.h, d)),
                         .hx = call.hx->defined() ? (*call.hx)[index].const_data_ptr() : nullptr,
                         .hx_row_stride = call.hx->defined() ? call.hx->stride(1) : 0,
                         .grad_w_ih = to[0].mutable_data_ptr(),
                         .grad_w_hh = to[1].mutable_data_ptr(),
                         .grad_b_ih = bias(2),
                         .grad_b_hh = bias(3)};
  }
  check_launch(launch_weight_grads(task, call.context.stream), "weight_grads_kernel", call.shape);
}

// By products over all steps.
void by_products(const Call& call, const Layer& layer, const Input& input,
                 std::vector<Tensor>& grads) {
  const Tensor x = input.masked_rows(call);
  for (int64_t d = 0; d < call.shape.num_directions; ++d) {
    const int64_t index = layer.first + d;
    Tensor* const to = &grads[index * call.per_index()];
    const Tensor grad_pre = call.direction(layer.grad_pre, d);
    multiply(Matrix(to[0]), Matrix(grad_pre).transposed(), Matrix(x), call.context.tf32);
    recurrent_weight_grad(call, grad_pre, call.direction(layer.h, d), index, d == 1, to[1]);
    if (call.has_biases) {
      at::sum_out(to[2], grad_pre, {0});
      to[3].copy_(to[2]);
    }
  }
}

}  // namespace

void weight_grads(const Call& call, const Layer& layer, const Input& input,
                  std::vector<Tensor>& grads) {
  call.grads_in_one_launch(input.features) ? in_one_launch(call, layer, input, grads)
                                           : by_products(call, layer, input, grads);
}

}  // namespace fastrnn::cuda
