// A node of autograd's graph for one of our operators.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "arguments.h"
#include "ops.h"

namespace fastrnn {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kNoReference =
    "rnn: gradients of gradients need the Python package fastrnn, which is not loaded";
constexpr const char* kNoGraphInCompiledAutograd =
    "rnn: create_graph=True is not supported under compiled autograd; compute gradients of "
    "gradients outside of it";

inline OptionalTensor defined(const Tensor& x) {
  return x.defined() ? OptionalTensor(x) : std::nullopt;
}

// A gradient may be sparse.
inline OptionalTensor dense(const Tensor& x) {
  return x.defined() && x.layout() != at::kStrided ? x.to_dense() : defined(x);
}

// For a tensor that a saved-tensor hook may have returned: contiguous() does not check storages.
inline OptionalTensor contiguous(const char* name, const Tensor& x) {
  if (!x.defined()) return std::nullopt;
  check_storage(name, x);
  return x.contiguous();
}

// Of a mark: autograd keeps no inference tensor.
inline Tensor no_inference(const OptionalTensor& x) {
  return !x ? Tensor() : x->is_inference() ? x->clone() : *x;
}

inline bool functorch_is_active() {
  return c10::impl::tls_local_dispatch_key_set().included_.has(
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

// A gradient that no kernel takes: a batch of gradients (is_grads_batched), or one with a
// forward-mode tangent.
inline bool needs_reference(const OptionalTensor& grad) {
  return grad && (grad->key_set().has(c10::DispatchKey::Batched) || grad->_fw_grad(0).defined());
}

// The node whose backward pass this thread runs. Autograd knows it only while its engine runs, not
// if the node is called directly.
inline thread_local const torch::autograd::Node* running_node = nullptr;

// Function has static functions forward and backward, and a kName.
template <typename Function>
struct OwnNode : torch::autograd::CppNode<Function> {
  variable_list apply(variable_list&& grads) override {
    struct Running {
      const torch::autograd::Node* before;
      ~Running() { running_node = before; }
    } running{std::exchange(running_node, this)};
    return torch::autograd::CppNode<Function>::apply(std::move(grads));
  }
  std::string name() const override { return Function::kName; }
};

// The node that runs a function's backward pass, if it is one that can be asked for its edges.
template <typename Function>
const torch::autograd::Node* node_of(const AutogradContext* ctx) {
  const auto* node = static_cast<const OwnNode<Function>*>(running_node);
  return node && &node->ctx_ == ctx ? node : nullptr;
}

// Leads an argument that a node kept to where its gradient goes. The call decided that: the
// argument may have been detached since, or not kept.
inline void connect(Tensor& x, const torch::autograd::Node& node, size_t i) {
  x = x.tensor_data();
  if (const auto& edge = node.next_edge(i); edge.is_valid())
    torch::autograd::impl::set_gradient_edge(x, edge);
}

// Versions of torch differ in what holds a node of the graph.
template <typename Node>
std::shared_ptr<Node> new_node(const std::shared_ptr<torch::autograd::Node>&) {
  return {new Node, [](Node* node) { deleteNode(node); }};
}
template <typename Node>
auto new_node(const c10::intrusive_ptr<torch::autograd::Node>&) {
  return c10::make_intrusive<Node>();
}

// Does what Function::apply does, which costs a small step more: apply also notes the sizes of all
// arguments and results, to make zeros for missing gradients (our functions ask for none), and
// looks for arguments among the results. `edges` are those of the arguments, even of missing ones;
// forward(context, edges) runs the call.
template <typename Function, typename Forward>
variable_list recorded(torch::autograd::edge_list edges, const Forward& forward) {
  if (const auto& functorch = at::functorch::functorchTLSAccessor())
    functorch->checkSupportsCppAutogradFunction();
  auto node = new_node<OwnNode<Function>>(torch::autograd::Edge().function);
  node->is_variable_input_.assign(edges.size(), true);
  node->set_ctx_grad_fn(node);
  node->set_next_edges(std::move(edges));
  variable_list results;
  {
    at::AutoGradMode no_grad(false);
    results = forward(&node->ctx_, node->next_edges());
  }
  for (const Tensor& x : results) torch::autograd::set_history(x, node);
  node->save_variables_to_ctx();
  return results;
}

}  // namespace fastrnn
