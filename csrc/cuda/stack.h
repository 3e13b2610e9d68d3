// A whole stack on CUDA: layers, directions, projections, weight gradients; tensors to launches.
#pragma once

#include "arguments.h"
#include "cuda/context.h"
#include "ops.h"

namespace fastrnn::cuda {

// A call as choose() takes it; the caller sets whether torch may serve it.
Problem problem_of(Dtype dtype, const Shape& shape, const Context& context, bool has_hx,
                   bool backward);

std::tuple<Tensor, Tensor, Tensor> forward(const Context& context, FASTRNN_ARGUMENTS, bool save);
std::tuple<Tensor, Tensor, std::vector<Tensor>> backward(
    const Context& context, const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const Tensor& saved, FASTRNN_ARGUMENTS, bool want_input, bool want_hx, bool want_weights);

// rnn_extended, rnn_extended_forward and rnn_extended_backward (ops.h).
std::tuple<Tensor, Tensor, Tensor> forward_extended(const Context& context, FASTRNN_ARGUMENTS,
                                                    FASTRNN_EXTRAS);
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_extended_and_save(const Context& context,
                                                                     FASTRNN_ARGUMENTS,
                                                                     FASTRNN_EXTRAS);
std::tuple<Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> backward_extended(
    const Context& context, const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const OptionalTensor& grad_layers, const Tensor& saved, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS,
    bool want_input, bool want_hx, bool want_weights, bool want_gates, bool want_alpha);

}  // namespace fastrnn::cuda
