// The operator rnn_extended under its autograd and autocast keys.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>

#include "arguments.h"
#include "kept.h"
#include "node.h"
#include "ops.h"

namespace fastrnn {
namespace {

ExtendedReferenceBackward& reference_backward() {
  static ExtendedReferenceBackward f;
  return f;
}

// Which arguments and results of a node's call are which. What it keeps: the arguments that may
// want gradients, in the order of their edges, and then the rest.
enum Kept : size_t { kInput, kHx, kGates, kAlpha, kFirstWeight };

// Unlike RnnFunction it keeps all arguments, needed or not.
struct ExtendedFunction : torch::autograd::Function<ExtendedFunction> {
  static constexpr const char* kName = "RnnExtendedBackward";

  static variable_list forward(AutogradContext* ctx, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, hn, layers, saved] = rnn_extended_forward(FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
    const auto keep = [](const OptionalTensor& x) { return x ? kept_of(*x) : Tensor(); };
    variable_list kept{keep(input), keep(hx), keep(gates), keep(alpha)};
    kept.reserve(kept.size() + weights.size() + 5);
    for (const Tensor& w : weights) kept.push_back(kept_of(w));
    for (const Tensor& x : {batch_sizes ? batch_sizes->clone() : Tensor(), no_inference(lengths),
                            no_inference(reset), no_inference(dropout_mask), saved})
      kept.push_back(x);
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["options"] =
        Options{has_biases, num_layers, nonlinearity_of(nonlinearity), bidirectional, batch_first}
            .bits();
    ctx->saved_data["alpha_value"] = alpha_value;
    ctx->saved_data["current"] = form == "current";
    ctx->set_materialize_grads(false);
    if (return_layers) return {output, hn, layers};
    return {output, hn};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list kept = ctx->get_saved_variables();
    const auto rest = kept.end() - 5;
    const OptionalTensor batch_sizes = contiguous("batch_sizes", rest[0]),
                         lengths = defined(rest[1]), reset = defined(rest[2]),
                         dropout_mask = defined(rest[3]);
    const Tensor saved = *contiguous("saved", rest[4]);
    kept.resize(kept.size() - 5);  // those with edges
    const auto [has_biases, num_layers, f, bidirectional, batch_first] =
        Options::of(ctx->saved_data["options"].toInt());
    const c10::string_view nonlinearity = name_of(f);
    const double alpha_value = ctx->saved_data["alpha_value"].toDouble();
    const c10::string_view form = ctx->saved_data["current"].toBool() ? "current" : "rate";
    const bool return_layers = grads.size() > 2;

    variable_list results(kept.size());
    const OptionalTensor grad_output = dense(grads[0]), grad_hn = dense(grads[1]),
                         grad_layers = return_layers ? dense(grads[2]) : std::nullopt;
    if (!grad_output && !grad_hn && !grad_layers) return results;
    std::vector<bool> wanted(kept.size());
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = ctx->needs_input_grad(i);
    const bool by_reference = at::GradMode::is_enabled() || functorch_is_active() ||
                              needs_reference(grad_output) || needs_reference(grad_hn) ||
                              needs_reference(grad_layers);
    if (by_reference) {
      TORCH_CHECK(reference_backward(), kNoReference);
      const torch::autograd::Node* const node = node_of<ExtendedFunction>(ctx);
      TORCH_CHECK_NOT_IMPLEMENTED(node, kNoGraphInCompiledAutograd);
      for (size_t i = 0; i < kept.size(); ++i)
        if (kept[i].defined()) connect(kept[i], *node, i);
    }
    const Tensor& input = kept[kInput];
    const OptionalTensor hx = defined(kept[kHx]), gates = defined(kept[kGates]),
                         alpha = defined(kept[kAlpha]);
    const TensorList weights = TensorList(kept).slice(kFirstWeight);
    if (by_reference) {
      std::vector<Tensor> found = reference_backward()({grad_output, grad_hn, grad_layers}, wanted,
                                                       FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
      for (size_t i = 0, next = 0; i < results.size(); ++i) {
        if (wanted[i]) results[i] = std::move(found.at(next++));
      }
      return results;
    }
    const bool want_weights =
        std::find(wanted.begin() + kFirstWeight, wanted.end(), true) != wanted.end();
    auto [grad_input, grad_hx, grad_weights, grad_gates, grad_alpha] = rnn_extended_backward(
        grad_output, grad_hn, grad_layers, saved, FASTRNN_PASS, FASTRNN_PASS_EXTRAS, wanted[kInput],
        wanted[kHx], want_weights, wanted[kGates], wanted[kAlpha]);
    const Tensor found[] = {grad_input, grad_hx, grad_gates, grad_alpha};
    for (size_t i = 0; i < results.size(); ++i) {
      if (wanted[i]) results[i] = i < kFirstWeight ? found[i] : grad_weights[i - kFirstWeight];
    }
    return results;
  }
};

std::tuple<Tensor, Tensor, Tensor> rnn_extended_autograd(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS) {
  using torch::autograd::isFwGradDefined;
  TORCH_CHECK(!dropout_mask || !dropout_mask->requires_grad(),
              "rnn: expected a dropout_mask that does not require grad");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !isFwGradDefined(input) && !isFwGradDefined(hx) && !isFwGradDefined(gates) &&
          !isFwGradDefined(alpha) && !torch::autograd::isFwGradDefinedTensorList(weights),
      "rnn: the operator does not support forward-mode AD, but fastrnn.functional does");
  const auto wants = [](const OptionalTensor& x) { return x && x->requires_grad(); };
  if (!wants_grad(input, hx, weights) &&
      !(at::GradMode::is_enabled() && (wants(gates) || wants(alpha)))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return rnn_extended(FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
  }
  const variable_list results = recorded<ExtendedFunction>(
      torch::autograd::collect_next_edges(input, hx, gates, alpha, weights),
      [&](AutogradContext* ctx, const torch::autograd::edge_list&) {
        return ExtendedFunction::forward(ctx, FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
      });
  return {results[0], results[1], return_layers ? results[2] : at::empty({0}, input.options())};
}

template <c10::DispatchKey kKey, c10::DeviceType kDevice>
std::tuple<Tensor, Tensor, Tensor> rnn_extended_autocast(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS) {
  check_storages(input, hx, weights, batch_sizes, lengths, reset, dropout_mask);
  if (gates) check_storage("gates", *gates);
  c10::impl::ExcludeDispatchKeyGuard below(kKey);
  const auto dtype = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [&](const Tensor& x) { return at::autocast::cached_cast(dtype, x, kDevice); };
  const auto cast_optional = [&](const OptionalTensor& x) {
    return x ? OptionalTensor(cast(*x)) : x;
  };
  std::vector<Tensor> cast_weights;
  for (const Tensor& w : weights) cast_weights.push_back(cast(w));
  return rnn_extended(cast(input), cast_optional(hx), cast_weights, batch_sizes, lengths, reset,
                      cast_optional(dropout_mask), has_biases, num_layers, nonlinearity,
                      bidirectional, batch_first, cast_optional(gates), alpha, alpha_value, form,
                      return_layers);
}

}  // namespace

void set_extended_reference_backward(ExtendedReferenceBackward f) {
  reference_backward() = std::move(f);
}

TORCH_LIBRARY_IMPL(fastrnn, Autograd, m) { m.impl("rnn_extended", rnn_extended_autograd); }
TORCH_LIBRARY_IMPL(fastrnn, AutocastCPU, m) {
  m.impl("rnn_extended",
         rnn_extended_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fastrnn, AutocastCUDA, m) {
  m.impl("rnn_extended",
         rnn_extended_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}

}  // namespace fastrnn
