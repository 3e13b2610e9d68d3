// The operators' autograd and autocast keys.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "arguments.h"
#include "by_torch.h"
#include "ops.h"

namespace fastrnn {
namespace {

ReferenceBackward& reference_backward() {
  static ReferenceBackward f;
  return f;
}

bool functorch_is_active() {
  return c10::impl::tls_local_dispatch_key_set().included_.has(
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

// A gradient that no kernel takes: a batch of gradients (is_grads_batched), or one with a
// forward-mode tangent.
bool needs_reference(const OptionalTensor& grad) {
  return grad && (grad->key_set().has(c10::DispatchKey::Batched) || grad->_fw_grad(0).defined());
}

OptionalTensor defined(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a node keeps besides tensors, in one number: a map of them costs a small step more.
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

struct RnnFunction : torch::autograd::Function<RnnFunction> {
  static variable_list forward(AutogradContext* ctx, FASTRNN_ARGUMENTS) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, hn, saved] = rnn_forward(FASTRNN_PASS, true);
    variable_list kept{input,
                       hx.value_or(Tensor()),
                       batch_sizes.value_or(Tensor()),
                       lengths.value_or(Tensor()),
                       reset.value_or(Tensor()),
                       dropout_mask.value_or(Tensor()),
                       saved};  // our own copy: the caller may write to output
    kept.insert(kept.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["options"] =
        Options{has_biases, num_layers, nonlinearity_of(nonlinearity), bidirectional, batch_first}
            .bits();
    ctx->set_materialize_grads(false);
    return {output, hn};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list kept = ctx->get_saved_variables();
    constexpr int64_t kFirstWeight = 7;
    const Tensor input = kept[0], saved = kept[6];
    const OptionalTensor hx = defined(kept[1]), batch_sizes = defined(kept[2]),
                         lengths = defined(kept[3]), reset = defined(kept[4]),
                         dropout_mask = defined(kept[5]);
    const TensorList weights = TensorList(kept).slice(kFirstWeight);
    const auto [has_biases, num_layers, f, bidirectional, batch_first] =
        Options::of(ctx->saved_data["options"].toInt());
    const c10::string_view nonlinearity = name_of(f);
    const OptionalTensor grad_output = defined(grads[0]), grad_hn = defined(grads[1]);

    variable_list results(2 + weights.size());  // of input, hx and the weights
    if (!grad_output && !grad_hn) return results;
    if (at::GradMode::is_enabled() || functorch_is_active() || needs_reference(grad_output) ||
        needs_reference(grad_hn)) {
      TORCH_CHECK(
          reference_backward(),
          "rnn: gradients of gradients need the Python package fastrnn, which is not loaded");
      const std::vector<Tensor> wanted = reference_backward()(grad_output, grad_hn, FASTRNN_PASS);
      size_t next = 0;
      if (input.requires_grad()) results[0] = wanted.at(next++);
      if (hx && hx->requires_grad()) results[1] = wanted.at(next++);
      for (size_t i = 0; i < weights.size(); ++i) {
        if (weights[i].requires_grad()) results[2 + i] = wanted.at(next++);
      }
      return results;
    }
    bool want_weights = false;
    for (size_t i = 0; i < weights.size(); ++i) want_weights |= ctx->needs_input_grad(2 + i);
    const bool want_input = ctx->needs_input_grad(0), want_hx = ctx->needs_input_grad(1);
    auto [grad_input, grad_hx, grad_weights] =
        rnn_backward(grad_output, grad_hn, saved, FASTRNN_PASS, want_input, want_hx, want_weights);
    if (want_input) results[0] = grad_input;
    if (want_hx) results[1] = grad_hx;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (ctx->needs_input_grad(2 + i)) results[2 + i] = grad_weights[i];
    }
    return results;
  }
};

// What holds a node of the graph differs among the versions of torch.
template <typename Node>
std::shared_ptr<Node> new_node(const std::shared_ptr<torch::autograd::Node>&) {
  return {new Node, [](Node* node) { deleteNode(node); }};
}
template <typename Node>
auto new_node(const c10::intrusive_ptr<torch::autograd::Node>&) {
  return c10::make_intrusive<Node>();
}

// As RnnFunction::apply, which costs a small step more: it also notes the sizes of all arguments
// and results, to make zeros for missing gradients (forward asks for none), and looks for arguments
// among the results. The edges are those of input, hx, even if it is not there, and the weights.
std::tuple<Tensor, Tensor> rnn_recorded(FASTRNN_ARGUMENTS) {
  if (const auto& functorch = at::functorch::functorchTLSAccessor())
    functorch->checkSupportsCppAutogradFunction();
  auto node = new_node<torch::autograd::CppNode<RnnFunction>>(torch::autograd::Edge().function);
  node->is_variable_input_.assign(2 + weights.size(), true);
  node->set_ctx_grad_fn(node);
  node->set_next_edges(torch::autograd::collect_next_edges(input, hx, weights));
  variable_list results;
  {
    at::AutoGradMode no_grad(false);
    results = RnnFunction::forward(&node->ctx_, FASTRNN_PASS);
  }
  for (const Tensor& x : results) torch::autograd::set_history(x, node);
  node->save_variables_to_ctx();
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

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
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
              "rnn: expected a dropout_mask that requires no grad");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !isFwGradDefined(input) && !isFwGradDefined(hx) &&
          !torch::autograd::isFwGradDefinedTensorList(weights),
      "rnn: the operator has no forward-mode derivative: call fastrnn.functional.rnn, which has");
  if (wants_grad(input, hx, weights)) {
    if (goes_to_torch && goes_to_torch(FASTRNN_PASS)) return rnn_by_torch(FASTRNN_PASS);
    return rnn_recorded(FASTRNN_PASS);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return rnn(FASTRNN_PASS);
}

void set_reference_backward(ReferenceBackward f) { reference_backward() = std::move(f); }

std::tuple<Tensor, Tensor> rnn(FASTRNN_ARGUMENTS) {
  static const auto op = find_op<decltype(rnn)>("fastrnn::rnn");
  return op.call(FASTRNN_PASS);
}

std::tuple<Tensor, Tensor, Tensor> rnn_forward(FASTRNN_ARGUMENTS, bool save) {
  static const auto op = find_op<decltype(rnn_forward)>("fastrnn::rnn_forward");
  return op.call(FASTRNN_PASS, save);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> rnn_backward(const OptionalTensor& grad_output,
                                                             const OptionalTensor& grad_hn,
                                                             const Tensor& saved, FASTRNN_ARGUMENTS,
                                                             bool want_input, bool want_hx,
                                                             bool want_weights) {
  static const auto op = find_op<decltype(rnn_backward)>("fastrnn::rnn_backward");
  return op.call(grad_output, grad_hn, saved, FASTRNN_PASS, want_input, want_hx, want_weights);
}

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
