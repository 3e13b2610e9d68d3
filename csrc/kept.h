// What a node of autograd's graph keeps of a call, and what it fills in for the rest.
#pragma once

#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/custom_function.h>

#include "arguments.h"
#include "ops.h"

namespace fastrnn {

// What a node keeps besides tensors, packed into one number: a map would slow small steps down.
struct Options {
  bool has_biases;
  int64_t num_layers;
  Nonlinearity nonlinearity;
  bool bidirectional, batch_first;

  int64_t bits() const {
    return int64_t{has_biases} | int64_t{bidirectional} << 1 | int64_t{batch_first} << 2 |
           static_cast<int64_t>(nonlinearity) << 3 | num_layers << 8;
  }
  static Options of(int64_t bits) {
    return {(bits & 1) != 0, bits >> 8, static_cast<Nonlinearity>(bits >> 3 & 31), (bits & 2) != 0,
            (bits & 4) != 0};
  }
};

// What a node keeps: the values that its gradients need, of first and of higher order, and no more.
// So anything else may be freed, changed in place, or be an inference tensor, as with torch.nn.RNN.
//
//   kept                                  if a gradient is wanted of
//   input                                 a w_ih of the first layer
//   hx                                    a w_hh
//   w_ih                                  its layer's input: `input`, or anything below the layer
//   w_hh                                  hx; with more than one step, its layer's input or any
//                                         weight or bias of its layer and direction
//   b_ih, b_hh                            (never: no derivative needs their values)
//   dropout_mask                          a w_ih above the first layer, or anything below one
//   saved, batch_sizes, lengths, reset    anything; saved and batch_sizes are our own copies
struct Needed {
  bool input = false, hx = false, dropout_mask = false;
  c10::SmallVector<bool, 8> weights;

  // The edges are valid where a gradient is wanted.
  Needed(const torch::autograd::edge_list& edges, const Options& options, bool one_step);
};

bool has_one_step(const Tensor& input, const OptionalTensor& batch_sizes, bool batch_first);

// Stands in for a tensor whose values are not needed: the same sizes except for the last, in the
// memory of one row.
Tensor stand_in(const Tensor& x, const c10::SymInt& features);

// The weights, with others in place of those that were not kept.
void fill_in(torch::autograd::variable_list& weights, const Tensor& input, const Tensor& saved,
             const Options& options);

// What a node keeps of an argument. As in torch.nn.RNN, which keeps views, it shares memory and
// version with the argument, but `x.data = y` or `module.half()` do not change it.
Tensor kept_of(const Tensor& x);

}  // namespace fastrnn
