// A call's arguments: checked before anything runs, and laid out as both devices' kernels take
// them.
#pragma once

#include <c10/util/MaybeOwned.h>
#include <c10/util/SmallVector.h>

#include "ops.h"
#include "rnn.h"

namespace fastrnn {

Nonlinearity nonlinearity_of(c10::string_view name);
c10::string_view name_of(Nonlinearity nonlinearity);
Dtype dtype_of(const Tensor& x);

// Named as in rnn.h; `rows` counts the rows of all steps.
struct Shape {
  int64_t seq_len, batch, rows, input_size, hidden_size, num_layers, num_directions;
  Nonlinearity nonlinearity;

  int64_t states() const { return num_layers * num_directions; }  // L*D
  int64_t features() const { return num_directions * hidden_size; }
};

// Whether sizes and strides describe places in a storage: not so for a wrapper, a compiler's tensor
// or a nested one.
bool has_own_storage(const at::TensorImpl& x);

// Throws unless all elements of `x` lie in its storage, which may have been freed or shrunk. For a
// tensor of a list, `index` is its place there.
FASTRNN_API void check_storage(const char* name, const Tensor& x, int64_t index = -1);
// The same for all tensors of a call, before torch's own operators, not all of which check.
FASTRNN_API void check_storages(const Tensor& input, const OptionalTensor& hx, TensorList weights,
                                const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                const OptionalTensor& reset, const OptionalTensor& dropout_mask);

// Throws unless `x` has these sizes, the dtype and device of `like`, and memory.
void check_tensor(const char* name, const Tensor& x, at::IntArrayRef sizes, const Tensor& like,
                  int64_t index = -1);

// Throws if the arguments are wrong. The values of `lengths` are checked later, with the kernels,
// as they may have to be fetched from a device.
Shape check(FASTRNN_ARGUMENTS);

// Throws the error of torch's allocator.
[[noreturn]] void out_of_memory(int64_t bytes);
std::vector<int64_t> zeros(int64_t count);

using MaybeOwned = c10::MaybeOwned<Tensor>;

// Borrowed if the tensor is fine as it is, which spares a small step the reference count.
MaybeOwned contiguous_features(const Tensor& x);

// The arguments of a call. It refers to them, so they must outlive it.
struct Arguments {
  explicit Arguments(FASTRNN_ARGUMENTS);

  Shape shape;
  Dtype dtype;
  bool has_biases, packed, batch_first;
  const OptionalTensor &lengths, &reset;
  MaybeOwned input;         // with contiguous features
  MaybeOwned hx;            // [L*D, B, H] with contiguous features, or undefined. Zero for rows in
                            // which a sequence begins at their first step
  MaybeOwned dropout_mask;  // [L-1, rows, D*H] or [L-1, T, B, D*H], contiguous, or undefined
  c10::SmallVector<MaybeOwned, 8> weights;  // contiguous
  std::vector<int64_t> start, active;       // of each packed step: its first row, and how many
  const bool* reset_data = nullptr;
  int64_t reset_step_stride = 0, reset_row_stride = 0;

  // A tensor in the input's layout: padded (T, B, F) or (B, T, F), or packed (rows, F).
  Sequence sequence(const Tensor& x) const;
  // A state [L*D, B, H], but zero for the rows with a reset at their first step: they do not start
  // from hx, and no gradient goes there.
  Tensor without_begun(const Tensor& state) const;
};

// What a backward pass takes in addition.
struct Gradients {
  // `saved` is of so many layers; with what rnn.h calls kept, each counts twice.
  Gradients(const Arguments& arguments, const OptionalTensor& grad_output,
            const OptionalTensor& grad_hn, const Tensor& saved, int64_t layers);

  MaybeOwned output;  // in the input's layout, with contiguous features, or undefined
  MaybeOwned hn;      // [L*D, B, H] contiguous, or undefined
};

}  // namespace fastrnn
