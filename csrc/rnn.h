// The contract between the operators and their kernels: the maths, the shapes, and what the structs
// of both devices are made of.
//
// One layer, one direction of an Elman RNN (Elman 1990), time-major and row-major, T steps of B
// rows:
//   igates[t] = input[t] @ w_ih^T + b_ih + b_hh
//   h[t] = f(igates[t] + h[t-1] @ w_hh^T),   f = tanh or relu,   h[-1] = hx,   output[t] = h[t]
// Back through time (Werbos 1990), t = T-1 .. 0, with grad_h[T-1] starting from grad_hn:
//   grad_h[t]  += grad_output[t]
//   grad_pre[t] = grad_h[t] * f'(h[t]),   tanh' = 1 - h^2,   relu' = not (h <= 0): only h is saved
//   grad_h[t-1] = grad_pre[t] @ w_hh,     grad_hx = grad_h[-1]
// Over all steps at once, after the loop:
//   grad_input = grad_pre @ w_ih   grad_w_ih = grad_pre^T @ input   grad_w_hh = grad_pre^T @ h_prev
//   grad_b = sum(grad_pre)
// The reverse direction is the same with t running from T-1 to 0.
#pragma once

#include <cstdint>

// What other libraries, the Python module among them, may call.
#define FASTRNN_API __attribute__((visibility("default")))

namespace fastrnn {

enum class Nonlinearity : int { kTanh, kRelu };

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };
constexpr int kDtypes = 4;

// A sequence tensor; its features are contiguous.
struct Sequence {
  void* data;
  int64_t step_stride;  // in elements
  int64_t row_stride;
};

}  // namespace fastrnn
