// The operators' autograd and autocast keys.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "arguments.h"
#include "by_torch.h"
#include "kept.h"
#include "node.h"
#include "ops.h"

namespace fastrnn {
namespace {

ReferenceBackward& reference_backward() {
  static ReferenceBackward f;
  return f;
}

struct RnnFunction : torch::autograd::Function<RnnFunction> {
  static constexpr const char* kName = "RnnBackward";

  static variable_list forward(AutogradContext* ctx, const torch::autograd::edge_list& edges,
                               FASTRNN_ARGUMENTS) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, hn, saved] = rnn_forward(FASTRNN_PASS, true);
    const Options options{has_biases, num_layers, nonlinearity_of(nonlinearity), bidirectional,
                          batch_first};
    const Needed needed(edges, options, has_one_step(input, batch_sizes, batch_first));
    const auto if_needed = [](bool is_needed, const OptionalTensor& x) {
      return is_needed && x ? kept_of(*x) : Tensor();
    };
    variable_list kept{if_needed(needed.input, input),
                       if_needed(needed.hx, hx),
                       batch_sizes ? batch_sizes->clone() : Tensor(),
                       no_inference(lengths),
                       no_inference(reset),
                       if_needed(needed.dropout_mask, dropout_mask),
                       saved};  // the caller may write to output
    kept.reserve(kept.size() + weights.size());
    for (size_t i = 0; i < weights.size(); ++i)
      kept.push_back(needed.weights[i] ? kept_of(weights[i]) : Tensor());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["options"] = options.bits();
    if (!needed.input)
      ctx->saved_data["input"] = stand_in(input, edges[0].is_valid() ? input.sym_size(-1) : 1);
    if (!needed.hx && edges[1].is_valid()) ctx->saved_data["hx"] = stand_in(*hx, hx->sym_size(-1));
    ctx->set_materialize_grads(false);
    return {output, hn};
  }

  // The arguments of the call, as far as they are kept.
  struct Call {
    Tensor input;
    OptionalTensor hx, batch_sizes, lengths, reset, dropout_mask;
    Tensor saved;
    variable_list weights;
    Options options;
  };
  static Call call_of(AutogradContext* ctx) {
    variable_list kept = ctx->get_saved_variables();
    constexpr int64_t kFirstWeight = 7;
    const auto kept_or_stand_in = [&](const Tensor& x, const char* name) {
      if (x.defined()) return x;
      const auto found = ctx->saved_data.find(name);
      return found == ctx->saved_data.end() ? x : found->second.toTensor();
    };
    // The hooks of saved tensors may have changed their layout.
    Call call{.input = kept_or_stand_in(kept[0], "input"),
              .hx = defined(kept_or_stand_in(kept[1], "hx")),
              .batch_sizes = contiguous("batch_sizes", kept[2]),
              .lengths = defined(kept[3]),
              .reset = defined(kept[4]),
              .dropout_mask = defined(kept[5]),
              .saved = *contiguous("saved", kept[6]),
              .weights = {std::make_move_iterator(kept.begin() + kFirstWeight),
                          std::make_move_iterator(kept.end())},
              .options = Options::of(ctx->saved_data["options"].toInt())};
    fill_in(call.weights, call.input, call.saved, call.options);
    return call;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto [input, hx, batch_sizes, lengths, reset, dropout_mask, saved, weights, options] =
        call_of(ctx);
    const auto [has_biases, num_layers, f, bidirectional, batch_first] = options;
    const c10::string_view nonlinearity = name_of(f);
    const OptionalTensor grad_output = dense(grads[0]), grad_hn = dense(grads[1]);

    variable_list results(2 + weights.size());  // of input, hx and the weights
    if (!grad_output && !grad_hn) return results;
    std::vector<bool> wanted(results.size());
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = ctx->needs_input_grad(i);
    if (at::GradMode::is_enabled() || functorch_is_active() || needs_reference(grad_output) ||
        needs_reference(grad_hn)) {
      TORCH_CHECK(reference_backward(), kNoReference);
      const torch::autograd::Node* const node = node_of<RnnFunction>(ctx);
      TORCH_CHECK_NOT_IMPLEMENTED(node, kNoGraphInCompiledAutograd);
      connect(input, *node, 0);
      if (hx) connect(*hx, *node, 1);
      for (size_t i = 0; i < weights.size(); ++i) connect(weights[i], *node, 2 + i);
      std::vector<Tensor> found =
          reference_backward()(grad_output, grad_hn, saved, wanted, FASTRNN_PASS);
      for (size_t i = 0, next = 0; i < results.size(); ++i) {
        if (wanted[i]) results[i] = std::move(found.at(next++));
      }
      return results;
    }
    const bool want_input = wanted[0], want_hx = wanted[1],
               want_weights = std::find(wanted.begin() + 2, wanted.end(), true) != wanted.end();
    auto [grad_input, grad_hx, grad_weights] =
        rnn_backward(grad_output, grad_hn, saved, FASTRNN_PASS, want_input, want_hx, want_weights);
    if (want_input) results[0] = grad_input;
    if (want_hx) results[1] = grad_hx;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (wanted[2 + i]) results[2 + i] = grad_weights[i];
    }
    return results;
  }
};

// Attaches the node of torch.tanh or torch.relu, whose backward pass reads only the result.
template <typename Node>
Tensor with_node(Tensor h, const Tensor& pre) {
  const auto node = new_node<Node>(torch::autograd::Edge().function);
  node->set_next_edges(torch::autograd::collect_next_edges(pre));
  torch::autograd::set_history(h, node);
  node->result_ = torch::autograd::SavedVariable(h, /*is_output=*/true);
  return h;
}

std::tuple<Tensor, Tensor> rnn_recorded(FASTRNN_ARGUMENTS) {
  const variable_list results =
      recorded<RnnFunction>(torch::autograd::collect_next_edges(input, hx, weights),
                            [&](AutogradContext* ctx, const torch::autograd::edge_list& edges) {
                              return RnnFunction::forward(ctx, edges, FASTRNN_PASS);
                            });
  return {results[0], results[1]};
}

template <c10::DispatchKey kKey, c10::DeviceType kDevice>
std::tuple<Tensor, Tensor> rnn_autocast(FASTRNN_ARGUMENTS) {
  check_storages(input, hx, weights, batch_sizes, lengths, reset, dropout_mask);
  c10::impl::ExcludeDispatchKeyGuard below(kKey);
  const auto dtype = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [&](const Tensor& x) { return at::autocast::cached_cast(dtype, x, kDevice); };
  const auto cast_optional = [&](const OptionalTensor& x) {
    return x ? OptionalTensor(cast(*x)) : x;
  };
  std::vector<Tensor> cast_weights;
  for (const Tensor& w : weights) cast_weights.push_back(cast(w));
  return rnn(cast(input), cast_optional(hx), cast_weights, batch_sizes, lengths, reset,
             cast_optional(dropout_mask), has_biases, num_layers, nonlinearity, bidirectional,
             batch_first);
}

}  // namespace

bool wants_grad(const Tensor& input, const OptionalTensor& hx, TensorList weights) {
  if (!at::GradMode::is_enabled()) return false;
  bool wanted = input.requires_grad() || (hx && hx->requires_grad());
  for (const Tensor& w : weights) wanted |= w.requires_grad();
  return wanted;
}

std::tuple<Tensor, Tensor> rnn_autograd(FASTRNN_ARGUMENTS,
                                        bool (*goes_to_torch)(FASTRNN_ARGUMENTS)) {
  using torch::autograd::isFwGradDefined;
  TORCH_CHECK(!dropout_mask || !dropout_mask->requires_grad(),
              "rnn: expected a dropout_mask that does not require grad");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !isFwGradDefined(input) && !isFwGradDefined(hx) &&
          !torch::autograd::isFwGradDefinedTensorList(weights),
      "rnn: the operator does not support forward-mode AD, but fastrnn.functional.rnn does");
  if (wants_grad(input, hx, weights)) {
    if (goes_to_torch && goes_to_torch(FASTRNN_PASS)) return rnn_by_torch(FASTRNN_PASS);
    return rnn_recorded(FASTRNN_PASS);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return rnn(FASTRNN_PASS);
}

Tensor known_activation(const Tensor& pre, const Tensor& value, bool is_tanh) {
  Tensor h = value.detach().clone();
  if (!at::GradMode::is_enabled() || !pre.requires_grad()) return h;
  return is_tanh ? with_node<torch::autograd::generated::TanhBackward0>(std::move(h), pre)
                 : with_node<torch::autograd::generated::ReluBackward0>(std::move(h), pre);
}

void set_reference_backward(ReferenceBackward f) { reference_backward() = std::move(f); }

TORCH_LIBRARY_IMPL(fastrnn, Autograd, m) {
  m.impl("rnn", [](FASTRNN_ARGUMENTS) { return rnn_autograd(FASTRNN_PASS, nullptr); });
}
TORCH_LIBRARY_IMPL(fastrnn, AutocastCPU, m) {
  m.impl("rnn", rnn_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fastrnn, AutocastCUDA, m) {
  m.impl("rnn", rnn_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}

}  // namespace fastrnn
