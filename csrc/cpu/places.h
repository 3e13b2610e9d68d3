// A stack's layers and directions in memory.
#pragma once

#include <type_traits>

#include "cpu/stack.h"

namespace fastrnn::cpu {

inline int64_t total_rows(const Steps& s) {
  return s.start ? s.start[s.seq_len - 1] + s.active[s.seq_len - 1] : s.seq_len * s.batch;
}

// The stack's layers as an index of layer and direction: which weights, where their input and
// output stand.
class Places {
 public:
  explicit Places(const Stack& s)
      : s_(s),
        rows_(total_rows(s.steps)),
        D_(s.num_directions),
        H_(s.hidden_size),
        bytes_(storage_bytes(s.dtype)) {}

  int64_t width() const { return D_ * H_; }  // of a layer's output
  int64_t layer_elements() const { return rows_ * width(); }
  int64_t directions() const { return D_; }
  int64_t count() const { return s_.num_layers * D_; }
  int64_t features(int64_t layer) const { return layer == 0 ? s_.input_size : width(); }
  int64_t layer(int64_t index) const { return index / D_; }
  int64_t first_of_layer(int64_t index) const { return layer(index) * D_; }
  int64_t per_index() const { return s_.has_biases ? 4 : 2; }
  const void* weight(int64_t index, int k) const { return s_.weights[index * per_index() + k]; }
  const void* bias(int64_t index, int k) const {
    return s_.has_biases ? weight(index, 2 + k) : nullptr;
  }

  // Columns of direction d of a sequence of D*H features.
  Sequence direction(Sequence x, int64_t d) const { return direction(x, d, bytes_); }
  Sequence direction(Sequence x, int64_t d, int64_t element_bytes) const {
    if (x.data) x.data = static_cast<char*>(x.data) + d * H_ * element_bytes;
    return x;
  }
  // A sequence of all rows with these features, contiguous.
  Sequence dense(const void* data, int64_t features) const {
    return {const_cast<void*>(data), s_.steps.batch * features, features};
  }
  Sequence layer_of(const void* stacked, int64_t layer) const {  // of [L, rows, D*H]
    const int64_t offset = layer * layer_elements() * bytes_;
    return dense(stacked ? static_cast<const char*>(stacked) + offset : nullptr, width());
  }
  Sequence mask_of_input(int64_t layer) const {
    return layer == 0 ? Sequence{} : layer_of(s_.dropout_mask, layer - 1);
  }
  const void* hx(int64_t index) const { return hx(s_.hx, index); }
  const void* hx(const void* data, int64_t index) const {
    return data ? static_cast<const char*>(data) + index * s_.hx_layer_stride * bytes_ : nullptr;
  }
  // Like gates: only some layers have them.
  Sequence gates(const void* stacked, int64_t layer) const {
    return layer < s_.gate_layers ? layer_of(stacked, layer) : Sequence{};
  }
  const void* alpha(int64_t index) const {
    const int64_t bytes = padded(H_) * accumulator_bytes(s_.dtype);
    return s_.alpha ? static_cast<const char*>(s_.alpha) + index * bytes : nullptr;
  }
  // Slice `index` of [L*D, B, H] contiguous.
  template <typename T>
  T* state(T* data, int64_t index) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return data ? static_cast<Byte*>(data) + index * s_.steps.batch * H_ * bytes_ : nullptr;
  }

 private:
  const Stack& s_;
  int64_t rows_, D_, H_, bytes_;
};

}  // namespace fastrnn::cpu
