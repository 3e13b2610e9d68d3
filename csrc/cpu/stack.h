// A whole call on the CPU: all layers and directions, shared out to threads as a plan says.
#pragma once

#include "cpu/kernels.h"

namespace fastrnn::cpu {

// A stack of L layers of D directions; layer l, direction d has index l * D + d.
struct Stack {
  Dtype dtype;
  Nonlinearity nonlinearity;
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
  // Of the operator rnn_extended:
  bool extended;
  const void* gates;  // [gate_layers, rows, D*H] contiguous, of the lowest layers; or null
  int64_t gate_layers;
  Leak leak;
  const void* alpha;     // accumulation type, [L*D, padded H]
  const void* leaky_hx;  // the state that leaks, where hx is f of it: with the same strides
};

struct Forward {
  Stack stack;
  Sequence output;  // [T, B, D*H], of the last layer
  void* hn;         // [L*D, B, H] contiguous
  void* saved;      // [L, rows, D*H] contiguous, the output of every layer, for the backward pass;
                    // null: not wanted
  void* kept;       // likewise, what a leaky layer keeps besides
};

struct Backward {
  Stack stack;
  const void* saved;
  Sequence grad_output;       // [T, B, D*H]; data null: zeros
  const void* grad_hn;        // [L*D, B, H] contiguous, or null: zeros
  Sequence grad_input;        // [T, B, I]; data null: not wanted
  void* grad_hx;              // [L*D, B, H] contiguous, or null: not wanted
  void* const* grad_weights;  // contiguous, in the order of weights; null: not wanted
  const void* kept;
  const void* grad_layers;  // [L, rows, D*H] contiguous; null: zeros
  void* grad_gates;         // like gates; null: not wanted
  void* grad_alpha;         // accumulation type, [L*D, H] contiguous; null: not wanted
};

// The problem that `choose` takes.
Problem problem_of(const Stack& stack, bool backward);

void run_forward(const Forward& call, const Kernels& kernels, const Plan& plan);
void run_backward(const Backward& call, const Kernels& kernels, const Plan& plan);

}  // namespace fastrnn::cpu
