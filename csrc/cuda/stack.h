// A whole stack on CUDA: layers, directions, projections, weight gradients; tensors to launches.
#pragma once

#include <string>

#include "cuda/choose.h"
#include "cuda/runtime.h"
#include "ops.h"

namespace fastrnn::cuda {

// Where and how a call runs.
struct Context {
  cudaStream_t stream;
  Device device;
  bool tf32;           // whether float32 products may use TF32
  std::string forced;  // a kernel's name, as choose() takes it
};

std::tuple<Tensor, Tensor, Tensor> forward(const Context& context, FASTRNN_ARGUMENTS, bool save);
std::tuple<Tensor, Tensor, std::vector<Tensor>> backward(
    const Context& context, const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const Tensor& saved, FASTRNN_ARGUMENTS, bool want_input, bool want_hx, bool want_weights);

}  // namespace fastrnn::cuda
