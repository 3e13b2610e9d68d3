#include "extras.h"

#include <array>

namespace fastrnn {

Leak leak_of(const OptionalTensor& alpha, double alpha_value, c10::string_view form) {
  if (form == "current") return Leak::kCurrent;
  TORCH_CHECK_VALUE(form == "rate", "Unknown form '", form, "'. Select from 'rate' or 'current'.");
  return alpha || alpha_value != 1 ? Leak::kRate : Leak::kNone;
}

std::vector<int64_t> layers_shape(const Shape& s, int64_t count, bool packed) {
  if (packed) return {count, s.rows, s.features()};
  return {count, s.seq_len, s.batch, s.features()};
}

MaybeOwned check_grad_layers(const Arguments& a, const Tensor& grad_layers) {
  check_tensor("grad_layers", grad_layers, layers_shape(a.shape, a.shape.num_layers, a.packed),
               *a.input);
  return grad_layers.expect_contiguous();
}

Extras::Extras(const Arguments& a, FASTRNN_EXTRAS)
    : leak(leak_of(alpha, alpha_value, form)),
      alpha(alpha),
      alpha_value(alpha_value),
      return_layers(return_layers) {
  const Shape& s = a.shape;
  TORCH_CHECK_VALUE(alpha_value > 0 && alpha_value <= 1,
                    "rnn: expected alpha_value greater than 0 and at most 1, got ", alpha_value);
  if (alpha) {
    const at::ScalarType exact = a.dtype == Dtype::kFloat64 ? at::kDouble : at::kFloat;
    const std::array size{s.states(), s.hidden_size};
    TORCH_CHECK(alpha->sizes() == at::IntArrayRef(size) && alpha->scalar_type() == exact &&
                    alpha->device() == a.input->device(),
                "rnn: expected alpha of shape ", at::IntArrayRef(size), " and dtype ", exact,
                " on ", a.input->device(), ", got ", alpha->sizes(), ", ", alpha->scalar_type(),
                ", ", alpha->device());
    check_storage("alpha", *alpha);
  }
  if (!gates) return;
  gate_layers = gates->dim() > 0 && gates->size(0) == 1 ? 1 : s.num_layers;
  std::vector<int64_t> shape = layers_shape(s, gate_layers, a.packed);
  if (a.packed) shape[1] = a.input->size(0);  // may have more rows than all steps
  check_tensor("gates", *gates, shape, *a.input);
  this->gates = a.packed && a.input->size(0) != s.rows
                    ? MaybeOwned::owned(gates->narrow(1, 0, s.rows).contiguous())
                    : gates->expect_contiguous();
}

}  // namespace fastrnn
