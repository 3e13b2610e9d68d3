// The contract between the operators and their kernels: the maths, the shapes, and plain structs of
// pointers and sizes.
//
// One layer, one direction of an Elman RNN (Elman 1990), time-major and row-major, T steps of B
// rows:
//   igates[t] = input[t] @ w_ih^T + b_ih + b_hh
//   h[t] = f(igates[t] + h[t-1] @ w_hh^T),   f = tanh or relu,   h[-1] = hx,   output[t] = h[t]
// Back through time (Werbos 1990), t = T-1 .. 0, with grad_h[T-1] starting from grad_hn:
//   grad_h[t]  += grad_output[t]
//   grad_pre[t] = grad_h[t] * f'(h[t]),      tanh' = 1 - h^2,  relu' = not (h <= 0): only h is
//   saved grad_h[t-1] = grad_pre[t] @ w_hh,        grad_hx = grad_h[-1]
// Over all steps at once, after the loop:
//   grad_input = grad_pre @ w_ih   grad_w_ih = grad_pre^T @ input   grad_w_hh = grad_pre^T @ h_prev
//   grad_b = sum(grad_pre)
// The reverse direction is the same with t running from T-1 to 0.
#pragma once

#include <cstdint>

namespace fastrnn {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Which rows there are at each step. Row i of step t of a sequence tensor x lies at
//   padded: x + t * step_stride + row(i) * row_stride,  row(i) = order ? order[i] : i
//   packed: x + (start[t] + i) * row_stride
// Rows are sorted by length, longest first: the rows of step t are 0 .. active[t]-1, and active
// does not increase.
struct Steps {
  int64_t seq_len;
  int64_t batch;
  const int64_t* start;   // [T], or null: padded
  const int64_t* active;  // [T], or null: every row has every step
  const int64_t* order;   // [B], or null: already sorted
  const bool* reset;      // true where a new sequence begins: h[t-1] is hx again; null: nowhere
  int64_t reset_step_stride;
  int64_t reset_row_stride;
};

// A sequence tensor; its features are contiguous.
struct Sequence {
  void* data;
  int64_t step_stride;  // in elements
  int64_t row_stride;
};

// A stack of L layers of D directions; layer l, direction d has index l * D + d.
struct Stack {
  Dtype dtype;
  bool relu;
  bool has_biases;
  int64_t num_layers;
  int64_t num_directions;
  int64_t input_size;
  int64_t hidden_size;
  Steps steps;
  Sequence input;  // [T, B, I]
  const void* hx;  // [L*D, B, H] with contiguous features, or null: zeros
  int64_t hx_layer_stride;
  int64_t hx_row_stride;
  const void* const* weights;  // for each index w_ih [H, I or D*H], w_hh [H, H] and, with biases,
                               // b_ih [H], b_hh [H]
  const void* dropout_mask;    // [L-1, rows, D*H] contiguous; multiplies the output of every layer
                               // but the last; or null
};

struct Forward {
  Stack stack;
  Sequence output;  // [T, B, D*H], of the last layer
  void* hn;         // [L*D, B, H] contiguous
  void* saved;      // [L, rows, D*H] contiguous, the output of every layer, for the backward pass;
                    // null: not wanted
};

struct Backward {
  Stack stack;
  const void* saved;
  Sequence grad_output;       // [T, B, D*H]; data null: zeros
  const void* grad_hn;        // [L*D, B, H] contiguous, or null: zeros
  Sequence grad_input;        // [T, B, I]; data null: not wanted
  void* grad_hx;              // [L*D, B, H] contiguous, or null: not wanted
  void* const* grad_weights;  // contiguous, in the order of weights; null: not wanted
};

}  // namespace fastrnn
