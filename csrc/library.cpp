// The operators' schemas. This library needs no Python: a C++ program may load it by itself.
//
// With T = seq_len, B = batch, I = input_size, H = hidden_size, L = num_layers, D = directions:
//   input         (T, B, I), (B, T, I) if batch_first, or packed data (rows, I)
//   hx            (L*D, B, H)
//   weights       w_ih, w_hh[, b_ih, b_hh] for each layer and direction
//   batch_sizes   (T) int64 on the CPU, for packed data
//   lengths       (B) int64
//   reset         (T, B), or (B, T) if batch_first, bool: the state before these steps is zero.
//                 (T, B) for packed data too
//   dropout_mask  (L-1, T, B, D*H) or (L-1, rows, D*H), time-major
//   nonlinearity  "tanh" or "relu"
//   output        (T, B, D*H) in the input's layout, with the strides of a time-major tensor
//   hn            (L*D, B, H)
//   saved         (L, rows, D*H): the output of every layer
// Of rnn_extended:
//   gates         (1 or L, T, B, D*H) or (1 or L, rows, D*H), time-major: added to the projected
//                 input of the first layer or of every layer
//   alpha         (L*D, H) float32, float64 for float64: the leak of every unit; null: alpha_value
//   form          "rate" or "current", see rnn.h. With alpha_value 1, the rate form does not leak
//   layers        (L, T, B, D*H) or (L, rows, D*H), time-major: the output of every layer
//   saved         (L, rows, D*H); (2*L, rows, D*H) in the rate form and for a tensor alpha, then
//                 with what rnn.h calls kept
#include <torch/library.h>

#define FASTRNN_SCHEMA                                                      \
  "Tensor input, Tensor? hx, Tensor[] weights, Tensor? batch_sizes, "       \
  "Tensor? lengths, Tensor? reset, Tensor? dropout_mask, bool has_biases, " \
  "int num_layers, str nonlinearity, bool bidirectional, bool batch_first"

#define FASTRNN_EXTRAS_SCHEMA \
  "Tensor? gates, Tensor? alpha, float alpha_value, str form, bool return_layers"

TORCH_LIBRARY(fastrnn, m) {
  m.def("rnn(" FASTRNN_SCHEMA ") -> (Tensor output, Tensor hn)");
  m.def("rnn_forward(" FASTRNN_SCHEMA ", bool save) -> (Tensor output, Tensor hn, Tensor saved)");
  m.def("rnn_backward(Tensor? grad_output, Tensor? grad_hn, Tensor saved, " FASTRNN_SCHEMA
        ", bool want_input, bool want_hx, bool want_weights) "
        "-> (Tensor grad_input, Tensor grad_hx, Tensor[] grad_weights)");
  m.def("rnn_extended(" FASTRNN_SCHEMA ", " FASTRNN_EXTRAS_SCHEMA
        ") -> (Tensor output, Tensor hn, Tensor layers)");
  m.def("rnn_extended_forward(" FASTRNN_SCHEMA ", " FASTRNN_EXTRAS_SCHEMA
        ") -> (Tensor output, Tensor hn, Tensor layers, Tensor saved)");
  m.def(
      "rnn_extended_backward(Tensor? grad_output, Tensor? grad_hn, Tensor? grad_layers, "
      "Tensor saved, " FASTRNN_SCHEMA ", " FASTRNN_EXTRAS_SCHEMA
      ", bool want_input, bool want_hx, bool want_weights, bool want_gates, bool want_alpha) "
      "-> (Tensor grad_input, Tensor grad_hx, Tensor[] grad_weights, Tensor grad_gates, "
      "Tensor grad_alpha)");
}
