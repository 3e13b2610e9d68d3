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
//
// A leaky layer moves its state only part of the way, alpha of each unit (fastrnn/leaky.py has the
// sources). What its kernels keep besides the output is `kept`. Pre-activations
// pre[t] = igates[t] + ..., and igates may have terms from outside (gates), whose gradient is
// grad_pre.
//   rate:    h[t] = (1 - alpha) * h[t-1] + alpha * f(pre[t]),   output[t] = h[t]
//            kept[t] = f(pre[t]). From h alone it would be (h[t] - (1 - alpha) * h[t-1]) / alpha,
//            which has an error of 1 / alpha roundings.
//            grad_pre[t] = alpha * grad_h[t] * f'(kept[t])
//            grad_h[t-1] = (1 - alpha) * grad_h[t] + grad_pre[t] @ w_hh
//            grad_alpha  = sum(grad_h[t] * (kept[t] - h[t-1]))
//   current: v[t] = (1 - alpha) * v[t-1] + alpha * pre[t],   output[t] = f(v[t])
//            pre[t] = igates[t] + f(v[t-1]) @ w_hh^T;   hx, hn are currents, and f(hx) is h[-1]
//            kept[t] = pre[t] - v[t-1], for alpha's gradient only, for the same reason
//            grad_v[t]   = grad_output[t] * f'(output[t]) + ...,   grad_pre[t] = alpha * grad_v[t]
//            grad_v[t-1] = (1 - alpha) * grad_v[t] + (grad_pre[t] @ w_hh) * f'(output[t-1])
//            grad_alpha  = sum(grad_v[t] * kept[t])
// The state passes from step to step in the accumulation type: in 16 bits a small alpha * f would
// round to nothing.
#pragma once

#include <cstdint>

// What other libraries, the Python module among them, may call.
#define FASTRNN_API __attribute__((visibility("default")))

namespace fastrnn {

enum class Nonlinearity : int { kTanh, kRelu };

enum class Leak : int { kNone, kRate, kCurrent };

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };
constexpr int kDtypes = 4;

// A sequence tensor; its features are contiguous.
struct Sequence {
  void* data;
  int64_t step_stride;  // in elements
  int64_t row_stride;
};

}  // namespace fastrnn
