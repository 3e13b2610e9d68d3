// What a call of rnn_extended adds to a plain one.
#pragma once

#include "cuda/call.h"
#include "extras.h"

namespace fastrnn::cuda {

// In a plain call, all tensors are undefined.
struct Extended {
  Tensor gates;  // [1 or L, rows, D*H]
  // Of a leaky call.
  Tensor alpha;  // [L*D, H] contiguous, of the accumulation type; undefined: alpha_value
  double alpha_value = 1;
  Tensor hx;    // [L*D, B, H], the first state. Call::hx is what it is activated
  Tensor kept;  // [L, rows, D*H]; undefined: not wanted
  // Of the backward pass: what is given, and what is wanted.
  Tensor grad_layers;  // [L, rows, D*H]
  Tensor grad_gates;   // [1 or L, rows, D*H], of packed data with the input's rows
  Tensor grad_alpha;   // [L*D, H]

  Tensor gates_of(int64_t layer) const { return of_layer(gates, layer); }
  Tensor grad_gates_of(int64_t layer, int64_t rows) const {
    const Tensor grad = of_layer(grad_gates, layer);
    return grad.defined() ? grad.narrow(0, 0, rows) : grad;
  }
  Tensor kept_of(int64_t layer) const { return of_layer(kept, layer); }

 private:
  static Tensor of_layer(const Tensor& x, int64_t layer) {
    return x.defined() && layer < x.size(0) ? x[layer] : Tensor();
  }
};

// The gradients of input, hx and weights; each empty unless wanted.
using Grads = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

// Output and hn; layers [L, rows, D*H]: where the output of every layer goes, or undefined.
std::tuple<Tensor, Tensor> run_forward(Call& call, const Extended& extended, const Tensor& layers);
// layers: of the forward pass.
Grads run_backward(Call& call, const Extended& extended, const Gradients& grads,
                   const Tensor& layers, bool want_input, bool want_hx, bool want_weights);

}  // namespace fastrnn::cuda
