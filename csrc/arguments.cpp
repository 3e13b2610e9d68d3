#include "arguments.h"

#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <new>
#include <numeric>
#include <stdexcept>

namespace fastrnn {

Nonlinearity nonlinearity_of(c10::string_view name) {
  if (name == "tanh") return Nonlinearity::kTanh;
  if (name == "relu") return Nonlinearity::kRelu;
  TORCH_CHECK_VALUE(false, "Unknown nonlinearity '", name, "'. Select from 'tanh' or 'relu'.");
}

c10::string_view name_of(Nonlinearity nonlinearity) {
  switch (nonlinearity) {
    case Nonlinearity::kTanh:
      return "tanh";
    case Nonlinearity::kRelu:
      return "relu";
  }
  return "unknown";
}

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kHalf:
      return Dtype::kFloat16;
    default:
      TORCH_CHECK_VALUE(false,
                        "rnn: expected a dtype of float32, float64, bfloat16 or float16, got ",
                        x.scalar_type());
  }
}

bool has_own_storage(const at::TensorImpl& x) {
  return x.has_storage() && !x.is_python_dispatch() && !x.has_symbolic_sizes_strides() &&
         !x.key_set().has_any(c10::DispatchKeySet(
             {c10::DispatchKey::Functionalize, c10::DispatchKey::NestedTensor}));
}

namespace {

// Bytes from the start of the storage to the end of the last element; nothing if they overflow.
std::optional<int64_t> bytes_spanned(const at::TensorImpl& x) {
  int64_t last = x.storage_offset(), bytes = 0;
  bool overflows = false;
  const at::IntArrayRef sizes = x.sizes(), strides = x.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    int64_t step = 0;
    overflows |= c10::mul_overflows(sizes[d] - 1, strides[d], &step);
    overflows |= c10::add_overflows(last, step, &last);
  }
  overflows |= c10::add_overflows(last, int64_t{1}, &last);
  overflows |= c10::mul_overflows(last, static_cast<int64_t>(x.itemsize()), &bytes);
  return overflows ? std::nullopt : std::optional(bytes);
}

// For what a kernel is about to read. A wrapper subclass, which has no memory, gets this far only
// if nothing unwrapped it.
void check_memory(const char* name, const Tensor& x, int64_t index = -1) {
  check_storage(name, x, index);
  TORCH_CHECK(x.numel() == 0 || (x.has_storage() && x.storage().data()), "rnn: expected ", name,
              " to have memory, got a tensor without any, such as a compiler's or a wrapper's");
}

}  // namespace

void check_tensor(const char* name, const Tensor& x, at::IntArrayRef sizes, const Tensor& like,
                  int64_t index) {
  TORCH_CHECK(x.sizes() == sizes, "rnn: expected ", name, " of shape ", sizes, ", got ", x.sizes());
  TORCH_CHECK(x.scalar_type() == like.scalar_type(), "rnn: expected ", name, " of dtype ",
              like.scalar_type(), ", got ", x.scalar_type());
  TORCH_CHECK(x.device() == like.device(), "rnn: expected ", name, " on ", like.device(), ", got ",
              x.device());
  check_memory(index < 0 ? name : "weights", x, index);
}

namespace {

void check_count(const Shape& s, TensorList weights, bool has_biases) {
  TORCH_CHECK(s.num_layers > 0, "rnn: expected num_layers > 0, got ", s.num_layers);
  const int64_t per_layer = s.num_directions * (has_biases ? 4 : 2);
  int64_t expected = 0;
  TORCH_CHECK(!c10::mul_overflows(s.num_layers, per_layer, &expected) &&
                  static_cast<int64_t>(weights.size()) == expected,
              "rnn: expected ", per_layer, " weights for each of num_layers = ", s.num_layers,
              ", got ", weights.size());
}

// Returns hidden_size, as the first w_ih has it.
int64_t check_weights(const Shape& s, TensorList weights, bool has_biases, const Tensor& input) {
  TORCH_CHECK(weights[0].dim() == 2, "rnn: expected w_ih with 2 dimensions, got ",
              weights[0].dim());
  const int64_t H = weights[0].size(0), per_index = has_biases ? 4 : 2;
  TORCH_CHECK(s.input_size > 0 && H > 0, "rnn: expected input_size and hidden_size > 0, got ",
              s.input_size, ", ", H);
  for (int64_t i = 0; i < s.states(); ++i) {
    const int64_t features = i < s.num_directions ? s.input_size : s.num_directions * H;
    const int64_t first = i * per_index;
    check_tensor("w_ih", weights[first], {H, features}, input, first);
    check_tensor("w_hh", weights[first + 1], {H, H}, input, first + 1);
    for (int64_t k = first + 2; k < first + per_index; ++k)
      check_tensor(k == first + 2 ? "b_ih" : "b_hh", weights[k], {H}, input, k);
  }
  return H;
}

// Lengths or reset.
void check_mark(const char* name, const Tensor& x, at::ScalarType dtype, at::IntArrayRef sizes,
                const Tensor& input) {
  TORCH_CHECK_VALUE(x.scalar_type() == dtype && x.sizes() == sizes, "rnn: expected ", name,
                    " of dtype ", dtype, " and shape ", sizes, ", got ", x.scalar_type(), " and ",
                    x.sizes());
  TORCH_CHECK_VALUE(x.device() == input.device(), "rnn: expected ", name, " on ", input.device(),
                    ", got ", x.device());
  check_memory(name, x);
}

void check_batch_sizes(const Tensor& batch_sizes, const Tensor& data) {
  TORCH_CHECK(batch_sizes.device().is_cpu(), "rnn: expected batch_sizes on cpu, got ",
              batch_sizes.device());
  TORCH_CHECK(batch_sizes.scalar_type() == at::kLong, "expected scalar type Long but found ",
              batch_sizes.scalar_type());
  TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.is_contiguous(),
              "rnn: expected contiguous batch_sizes with one dimension, got shape ",
              batch_sizes.sizes());
  check_memory("batch_sizes", batch_sizes);
  TORCH_CHECK_INDEX(batch_sizes.numel() > 0,
                    "rnn: expected batch_sizes of at least one step, got none");
  const int64_t* sizes = batch_sizes.const_data_ptr<int64_t>();
  int64_t rows = 0;
  for (int64_t t = 0; t < batch_sizes.numel(); ++t) {
    TORCH_CHECK(sizes[t] >= 0 && (t == 0 || sizes[t] <= sizes[t - 1]),
                "rnn: expected batch_sizes that do not increase and are not negative, got ",
                sizes[t], " at step ", t);
    TORCH_CHECK(sizes[t] <= data.size(0) - rows,
                "rnn: expected batch_sizes that sum to at most the ", data.size(0),
                " rows of data, got more by step ", t);
    rows += sizes[t];
  }
}

// A tensor may be expanded to any size, and the bytes that the kernels need would overflow. This
// adds up those of all tensors, of packed weights and of a thousand threads' scratch.
void check_sizes(const Shape& s) {
  constexpr double kElement = 8, kPadding = 64, kScratch = 1 << 20, kMost = int64_t{1} << 60;
  const double layers = static_cast<double>(s.num_layers),
               rows = static_cast<double>(s.rows) + static_cast<double>(s.batch),
               H = static_cast<double>(s.features()) + kPadding,
               I = static_cast<double>(s.input_size) + H, steps = static_cast<double>(s.seq_len);
  TORCH_CHECK(
      kElement * (layers * H * (rows + I + H) + rows * I + kScratch * (I + H) + steps) < kMost,
      "rnn: expected sizes whose results fit in memory, got seq_len ", s.seq_len, ", batch ",
      s.batch, ", input_size ", s.input_size, ", hidden_size ", s.hidden_size, ", num_layers ",
      s.num_layers);
}

}  // namespace

void check_storage(const char* name, const Tensor& x, int64_t index) {
  const at::TensorImpl& impl = *x.unsafeGetTensorImpl();
  if (!has_own_storage(impl) || impl.numel() == 0) return;
  const std::optional<int64_t> bytes = bytes_spanned(impl);
  const size_t there = impl.unsafe_storage().nbytes();
  if (bytes && static_cast<size_t>(*bytes) <= there) return;
  TORCH_CHECK(false, "rnn: expected ", name, index < 0 ? "" : c10::str("[", index, "]"),
              " to have ", bytes ? c10::str(*bytes) : "more than 2^63",
              " bytes of storage, for shape ", x.sizes(), " and strides ", x.strides(),
              " from element ", x.storage_offset(), " on, got ", there,
              ": was it freed or resized?");
}

void check_storages(const Tensor& input, const OptionalTensor& hx, TensorList weights,
                    const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                    const OptionalTensor& reset, const OptionalTensor& dropout_mask) {
  check_storage("input", input);
  for (const auto& [name, x] : {std::pair{"hx", &hx},
                                {"batch_sizes", &batch_sizes},
                                {"lengths", &lengths},
                                {"reset", &reset},
                                {"dropout_mask", &dropout_mask}}) {
    if (*x) check_storage(name, **x);
  }
  for (size_t i = 0; i < weights.size(); ++i)
    check_storage("weights", weights[i], static_cast<int64_t>(i));
}

Shape check(FASTRNN_ARGUMENTS) {
  Shape s{};
  s.nonlinearity = nonlinearity_of(nonlinearity);
  s.num_layers = num_layers;
  s.num_directions = bidirectional ? 2 : 1;
  const int64_t dims = batch_sizes ? 2 : 3;
  check_count(s, weights, has_biases);
  TORCH_CHECK(input.dim() == dims, "input must have ", dims, " dimensions, got ", input.dim());
  TORCH_CHECK(input.layout() == at::kStrided, "rnn: expected a strided input, got layout ",
              input.layout());
  dtype_of(input);
  check_memory("input", input);
  s.input_size = input.size(-1);
  s.hidden_size = check_weights(s, weights, has_biases, input);
  if (batch_sizes) {
    check_batch_sizes(*batch_sizes, input);
    TORCH_CHECK(!batch_first && !lengths,
                "rnn: batch_first and lengths are for padded input, got batch_sizes");
    const int64_t* sizes = batch_sizes->const_data_ptr<int64_t>();
    s.seq_len = batch_sizes->numel();
    s.batch = sizes[0];
    for (int64_t t = 0; t < s.seq_len; ++t) s.rows += sizes[t];
  } else {
    s.seq_len = input.size(batch_first ? 1 : 0);
    s.batch = input.size(batch_first ? 0 : 1);
    s.rows = s.seq_len * s.batch;  // no more than the input's elements
    TORCH_CHECK(s.seq_len > 0, "Expected sequence length to be larger than 0 in RNN");
  }
  check_sizes(s);
  if (hx) check_tensor("hx", *hx, {s.states(), s.batch, s.hidden_size}, input);
  if (lengths) check_mark("lengths", *lengths, at::kLong, {s.batch}, input);
  if (reset) {
    const int64_t rows = batch_first ? s.batch : s.seq_len;
    const int64_t columns = batch_first ? s.seq_len : s.batch;
    check_mark("reset", *reset, at::kBool, {rows, columns}, input);
  }
  if (dropout_mask && batch_sizes) {
    check_tensor("dropout_mask", *dropout_mask, {num_layers - 1, input.size(0), s.features()},
                 input);
  } else if (dropout_mask) {
    check_tensor("dropout_mask", *dropout_mask, {num_layers - 1, s.seq_len, s.batch, s.features()},
                 input);
  }
  return s;
}

void out_of_memory(int64_t bytes) {
  TORCH_CHECK(false, "rnn: can't allocate memory: you tried to allocate ", bytes, " bytes");
}

std::vector<int64_t> zeros(int64_t count) {
  try {
    return std::vector<int64_t>(count);
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  out_of_memory(count * int64_t{sizeof(int64_t)});
}

MaybeOwned contiguous_features(const Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? MaybeOwned::borrowed(x)
                                              : MaybeOwned::owned(x.contiguous());
}

Arguments::Arguments(FASTRNN_ARGUMENTS)
    : shape(check(FASTRNN_PASS)),
      dtype(dtype_of(input)),
      has_biases(has_biases),
      packed(batch_sizes.has_value()),
      batch_first(batch_first),
      lengths(lengths),
      reset(reset),
      input(contiguous_features(input)) {
  for (const Tensor& w : weights) this->weights.push_back(w.expect_contiguous());
  if (hx) this->hx = reset ? MaybeOwned::owned(without_begun(*hx)) : contiguous_features(*hx);
  if (dropout_mask) {
    const bool more_rows = packed && input.size(0) != shape.rows;
    this->dropout_mask =
        more_rows ? MaybeOwned::owned(dropout_mask->narrow(1, 0, shape.rows).contiguous())
                  : dropout_mask->expect_contiguous();
  }
  if (batch_sizes) {
    active = zeros(shape.seq_len);
    start = zeros(shape.seq_len);
    std::copy_n(batch_sizes->const_data_ptr<int64_t>(), shape.seq_len, active.begin());
    std::exclusive_scan(active.begin(), active.end(), start.begin(), int64_t{0});
    // Another thread may write to them.
    TORCH_CHECK(active.front() == shape.batch && active.back() >= 0 &&
                    std::is_sorted(active.rbegin(), active.rend()) &&
                    start.back() + active.back() == shape.rows && shape.rows <= input.size(0),
                "rnn: batch_sizes changed while they were being read");
  }
  if (reset) {
    reset_data = reset->const_data_ptr<bool>();
    reset_step_stride = reset->stride(batch_first ? 1 : 0);
    reset_row_stride = reset->stride(batch_first ? 0 : 1);
  }
}

Sequence Arguments::sequence(const Tensor& x) const {
  void* data = const_cast<void*>(x.const_data_ptr());
  if (packed) return {data, 0, x.stride(0)};
  return {data, x.stride(batch_first ? 1 : 0), x.stride(batch_first ? 0 : 1)};
}

// The reverse direction begins at the last step.
Tensor Arguments::without_begun(const Tensor& state) const {
  Tensor begun = reset->select(batch_first ? 1 : 0, 0);
  if (lengths) begun = begun.logical_and(lengths->gt(0));
  const Tensor kept = state.clone(at::MemoryFormat::Contiguous);
  kept.view({shape.num_layers, shape.num_directions, shape.batch, shape.hidden_size})
      .select(1, 0)
      .masked_fill_(begun.unsqueeze(-1), 0);
  return kept;
}

Gradients::Gradients(const Arguments& a, const OptionalTensor& grad_output,
                     const OptionalTensor& grad_hn, const Tensor& saved, int64_t layers) {
  const Shape& s = a.shape;
  const Tensor& like = *a.input;
  check_tensor("saved", saved, {layers, s.rows, s.features()}, like);
  TORCH_CHECK(saved.is_contiguous(), "rnn_backward: expected saved to be contiguous");
  if (grad_output) {
    a.packed ? check_tensor("grad_output", *grad_output, {s.rows, s.features()}, like)
             : check_tensor("grad_output", *grad_output, {like.size(0), like.size(1), s.features()},
                            like);
    output = contiguous_features(*grad_output);
  }
  if (grad_hn) {
    check_tensor("grad_hn", *grad_hn, {s.states(), s.batch, s.hidden_size}, like);
    hn = grad_hn->expect_contiguous();
  }
}

}  // namespace fastrnn
