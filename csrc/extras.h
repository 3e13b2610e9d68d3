// What a call of rnn_extended has besides a plain one's arguments.
#pragma once

#include "arguments.h"

namespace fastrnn {

Leak leak_of(const OptionalTensor& alpha, double alpha_value, c10::string_view form);

// Checked, and laid out as kernels take it. It refers to the arguments, so they must outlive it.
struct Extras {
  Extras(const Arguments& arguments, FASTRNN_EXTRAS);

  Leak leak;
  MaybeOwned gates;  // [gate_layers, rows, D*H] contiguous, or undefined
  int64_t gate_layers = 0;
  const OptionalTensor& alpha;  // [L*D, H], of the accumulation type, or none
  double alpha_value;
  bool return_layers;

  // Whether the backward pass needs what rnn.h calls kept.
  bool keeps() const { return leak == Leak::kRate || (leak == Leak::kCurrent && alpha); }
};

// [count, T, B, D*H], or [count, rows, D*H] for packed data.
std::vector<int64_t> layers_shape(const Shape& s, int64_t count, bool packed);

// A gradient of `layers`, contiguous.
MaybeOwned check_grad_layers(const Arguments& arguments, const Tensor& grad_layers);

}  // namespace fastrnn
