#include "kept.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace fastrnn {

Needed::Needed(const torch::autograd::edge_list& edges, const Options& options, bool one_step)
    : weights(edges.size() - 2, false) {
  const size_t per_index = options.has_biases ? 4 : 2, D = options.bidirectional ? 2 : 1;
  const bool want_hx = edges[1].is_valid();
  bool below = edges[0].is_valid();  // of the layer's input
  for (size_t i = 0; i < weights.size();) {
    const size_t layer_end = i + D * per_index;
    const bool bottom = i == 0;
    bool here = below || want_hx;
    if (!bottom && below) dropout_mask = true;
    for (; i < layer_end; i += per_index) {
      const auto* const edge = &edges[2 + i];
      const bool own = std::any_of(edge, edge + per_index, [](auto& e) { return e.is_valid(); });
      (bottom ? input : dropout_mask) |= edge[0].is_valid();
      hx |= edge[1].is_valid();
      weights[i] = below;
      weights[i + 1] = want_hx || (!one_step && (below || own));
      here |= own;
    }
    below = here;
  }
}

bool has_one_step(const Tensor& input, const OptionalTensor& batch_sizes, bool batch_first) {
  return (batch_sizes ? batch_sizes->sym_size(0) : input.sym_size(batch_first ? 1 : 0))
             .maybe_as_int() == 1;
}

Tensor stand_in(const Tensor& x, const c10::SymInt& features) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = features;
  return at::empty_symint({features}, x.options()).expand_symint(sizes);
}

void fill_in(torch::autograd::variable_list& weights, const Tensor& input, const Tensor& saved,
             const Options& options) {
  const size_t per_index = options.has_biases ? 4 : 2, D = options.bidirectional ? 2 : 1;
  const c10::SymInt H = saved.sym_size(-1) / static_cast<int64_t>(D);
  Tensor bias;
  for (size_t i = 0; i < weights.size(); ++i) {
    Tensor& w = weights[i];
    if (w.defined()) continue;
    const auto empty = [&](c10::SymIntArrayRef sizes) {
      return at::empty_symint(sizes, saved.options());
    };
    if (i % per_index == 0) {
      w = empty({H, i < D * per_index ? input.sym_size(-1) : saved.sym_size(-1)});
    } else if (i % per_index == 1) {
      w = empty({H, H});
    } else {
      if (!bias.defined()) bias = empty({H});
      w = bias;
    }
  }
}

Tensor kept_of(const Tensor& x) {
  const at::TensorImpl& impl = *x.unsafeGetTensorImpl();
  if (!has_own_storage(impl) || x.is_inference()) return x;
  return Tensor(impl.shallow_copy_and_detach(impl.version_counter(),
                                             /*allow_tensor_metadata_change=*/false));
}

}  // namespace fastrnn
