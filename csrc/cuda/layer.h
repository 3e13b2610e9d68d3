// One layer of a call.
#pragma once

#include "cuda/call.h"

namespace fastrnn::cuda {

// What the loop of a layer works on, as matrices beside the recurrence's pointers.
struct Layer {
  Tensor h;         // [rows, D*H]
  Tensor grad_pre;  // [rows, D*H], of the backward pass
  int64_t first;    // index of the first direction
  Tensor kept;      // [rows, D*H], of a leaky layer; undefined: not wanted
};

// A layer's input: for the first layer the call's, as it came; else [rows, D*H] of the layer below.
struct Input {
  Tensor below;  // or undefined
  int64_t features;

  Sequence sequence(const Call& call) const {
    return below.defined() ? call.dense(below) : call.sequence(*call.input);
  }
  // With zeros beyond a row's length.
  Tensor masked_rows(const Call& call) const {
    return below.defined() ? below : call.masked_input();
  }
};

// Writes the gradients of its weights and biases into the call's list.
void weight_grads(const Call& call, const Layer& layer, const Input& input,
                  std::vector<Tensor>& grads);

}  // namespace fastrnn::cuda
