// The arguments of a call as the CUDA half takes them.
#pragma once

#include <ATen/ops/argsort.h>
#include <ATen/ops/empty.h>

#include "arguments.h"
#include "cuda/context.h"
#include "cuda/gemm.h"
#include "cuda/grads.h"
#include "cuda/recurrence.h"
#include "cuda/step.h"

namespace fastrnn::cuda {

inline void check_launch(cudaError_t error, const char* kernel, const Shape& s) {
  if (error == cudaSuccess) return;
  forget_error();
  TORCH_CHECK(false, "rnn: ", kernel, " failed for seq_len ", s.seq_len, ", batch ", s.batch,
              ", hidden_size ", s.hidden_size, ": ", text_of(error));
}

// Every sequence between the layers is [rows, features], dense: time-major where padded.
struct Call : Arguments {
  const Context& context;
  const bool backward;
  const Leak leak;
  Choice choice{};  // of the kernel that runs every layer's recurrence
  Rows rows{};

  Call(const Context& context, bool backward, Leak leak, FASTRNN_ARGUMENTS)
      : Arguments(FASTRNN_PASS), context(context), backward(backward), leak(leak) {
    rows.seq_len = shape.seq_len;
    rows.batch = shape.batch;
    if (shape.rows == 0) return;
    // First, since it may refuse, or wait: what a capture forbids at its first use, such as making
    // cuBLAS's handle, has not happened yet.
    choose_kernel();
    if (hx) this->hx = MaybeOwned::owned(separate_rows(*this->hx));
    if (packed) take_batch_sizes();
    if (lengths) {
      const Tensor given = lengths->contiguous();
      const bool ranked = choice.rows > 1 && shape.batch <= kMostRanked;
      lengths_ = empty({shape.batch * (ranked ? 2 : 1)}, at::kLong);
      int64_t* const checked = lengths_.mutable_data_ptr<int64_t>();
      int64_t* const order = ranked ? checked + shape.batch : nullptr;
      rows.lengths = checked;
      rows.order = order;
      check_launch(launch_check_lengths(given.const_data_ptr<int64_t>(), shape.batch, shape.seq_len,
                                        checked, order, context.stream),
                   "check_lengths_kernel", shape);
    }
    rows.reset = reset_data;
    rows.reset_step_stride = reset_step_stride;
    rows.reset_row_stride = reset_row_stride;
  }

  // Throws if none may run, such as one that is unchecked during stream capture.
  void choose_kernel();

  int64_t per_index() const { return has_biases ? 4 : 2; }
  const Tensor& weight(int64_t index, int k) const { return *weights[index * per_index() + k]; }
  const void* bias(int64_t index, int k) const {
    return has_biases ? weight(index, 2 + k).const_data_ptr() : nullptr;
  }
  // Whether one launch takes the gradients of a layer's weights.
  bool grads_in_one_launch(int64_t input_size) const {
    return context.few_launches &&
           cuda::grads_in_one_launch(shape.seq_len * shape.batch, input_size, shape.hidden_size,
                                     static_cast<int>(shape.num_directions),
                                     context.device.multiprocessors);
  }
  // Whether all rows walk all steps without a break.
  bool uniform() const { return !packed && !lengths && !reset; }

  Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, input->options()); }
  Tensor empty(at::IntArrayRef sizes, at::ScalarType type) const {
    return at::empty(sizes, input->options().dtype(type));
  }
  at::ScalarType accumulation_type() const {
    return dtype == Dtype::kFloat64 ? at::kDouble : at::kFloat;
  }
  bool is_narrow() const { return input->scalar_type() != accumulation_type(); }

  // A [rows, features] tensor as a sequence.
  Sequence dense(const Tensor& x) const {
    return {const_cast<void*>(x.const_data_ptr()), packed ? 0 : shape.batch * x.stride(0),
            x.stride(0)};
  }
  // How many rows have step t, and theirs of a matrix of all rows.
  int64_t rows_there(int64_t t) const {
    if (t < 0 || t >= shape.seq_len) return 0;
    return packed ? active[t] : shape.batch;
  }
  Matrix rows_at(const Matrix& x, int64_t t, int64_t count) const {
    return x.some_rows(packed ? start[t] : t * shape.batch, count);
  }
  // The columns of a direction.
  Tensor direction(const Tensor& x, int64_t d) const {
    return x.narrow(1, d * shape.hidden_size, shape.hidden_size);
  }
  // The input as [rows, I], copied only where its rows are not evenly spaced.
  Tensor flat_input() const {
    if (packed) return separate_rows(input->narrow(0, 0, shape.rows));
    const Tensor x = batch_first ? input->transpose(0, 1) : *input;
    return separate_rows(x.reshape({shape.rows, shape.input_size}));
  }
  // The same with zeros beyond a row's length, where anything may stand.
  Tensor masked_input() const {
    if (!lengths) return flat_input();
    const Tensor x = empty({shape.rows, shape.input_size});
    check_launch(launch_masked_copy({dtype, rows, shape.input_size, sequence(*input), dense(x)},
                                    context.stream),
                 "masked_copy_kernel", shape);
    return x;
  }
  // What multiplies a layer's output, [rows, D*H]; undefined without dropout.
  Tensor mask(int64_t layer) const {
    if (!dropout_mask->defined()) return {};
    return dropout_mask->select(0, layer).view({shape.rows, shape.features()});
  }
  // The input weights of a layer's directions, one below the other.
  Tensor input_weights(int64_t layer) const;

  // Rows by length, longest first, for kernels whose blocks end with their longest row.
  void sort_rows() {
    if (!lengths || rows.order) return;
    order_ =
        at::argsort(lengths_.narrow(0, 0, shape.batch), /*stable=*/true, 0, /*descending=*/true);
    rows.order = order_.const_data_ptr<int64_t>();
  }

  // A product cannot read rows that overlap, as those of an expanded tensor do.
  static Tensor separate_rows(const Tensor& x) {
    return x.size(-2) > 1 && x.stride(-2) < x.size(-1) ? x.contiguous() : x;
  }

 private:
  void take_batch_sizes() {
    std::vector<int64_t> lengths = zeros(shape.batch);
    int64_t t = shape.seq_len;
    for (int64_t b = 0; b < shape.batch; ++b) {
      while (t > 0 && active[t - 1] <= b) --t;
      lengths[b] = t;
    }
    lengths_ = empty({shape.batch + shape.seq_len}, at::kLong);
    int64_t* const on_device = lengths_.mutable_data_ptr<int64_t>();
    rows.lengths = on_device;
    rows.start = on_device + shape.batch;
    check_launch(
        launch_packed_rows(lengths.data(), shape.batch, shape.seq_len, on_device, context.stream),
        "take_numbers_kernel", shape);
  }

  Tensor lengths_, order_;  // and of packed rows their starts, or the order, behind the lengths
};

}  // namespace fastrnn::cuda
