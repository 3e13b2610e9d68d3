// The weights of a call, rearranged for the kernels.
#pragma once

#include <algorithm>
#include <atomic>

#include "cpu/places.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

namespace fastrnn::cpu {

// Packed weights of more bytes than this are packed a layer at a time, in one place: the waits cost
// little beside the packing.
constexpr int64_t kPackedTogether = 8 << 20;

// The weights of a stack as its kernels want them: packed, or with few rows as they came; and the
// sums of the biases.
class Weights {
 public:
  // Forward: the columns are hidden units. Backward: w_hh and w_ih as they stand, to multiply
  // grad_pre with.
  Weights(const Stack& s, const TypedKernels& kernels, Form form, bool forward)
      : places_(s),
        kernels_(kernels),
        forward_(forward),
        packed_(form != Form::kAsTheyCame),
        H_(s.hidden_size),
        bytes_(accumulator_bytes(s.dtype)) {
    size_ = bytes_of(0, places_.count());
    together_ = size_ <= kPackedTogether;
    if (together_) return;
    // Of the layers above the lowest, all are alike.
    const int64_t D = s.num_directions, last = places_.count() - D;
    size_ = std::max(bytes_of(0, D), bytes_of(last, last + D));
  }
  int64_t bytes() const { return size_; }

  // `memory` has room for bytes() bytes.
  void use(char* memory) { memory_ = memory; }

  // False once a packed w_hh holds NaN or infinity, which turn a state of zero into NaN.
  bool finite() const { return finite_.load(std::memory_order_relaxed); }

  // Every member packs its share. If all layers fit together they are packed at the first layer
  // walked; else each layer is packed over the one before.
  void pack(const Team& team, int64_t layer, bool first) {
    if (together_ && !first) return;
    char* memory = memory_;
    if (!first) team.wait();  // until all have read the layer before
    const int64_t D = places_.directions(), begin = together_ ? 0 : layer * D;
    const int64_t end = together_ ? places_.count() : begin + D;
    for (int64_t i = begin; i < end; ++i) {
      for (int k = 0; k < 2 && packed_; ++k) {
        const int64_t in = k == 0 ? features(i) : H_;
        const int64_t depth = forward_ ? in : H_, columns = forward_ ? H_ : in;
        const bool finite = kernels_.pack(memory, places_.weight(i, k), depth, columns, forward_,
                                          team.index, team.size);
        if (k == 1 && !finite) finite_.store(false, std::memory_order_relaxed);
        memory += size(i, k);
      }
      if (forward_ && team.index == 0)
        kernels_.add_biases(memory, places_.bias(i, 0), places_.bias(i, 1), H_);
      memory += size(i, 2);
    }
    team.wait();
  }

  const void* w_ih(int64_t index) const {
    return packed_ ? at(index, 0) : places_.weight(index, 0);
  }
  const void* w_hh(int64_t index) const {
    return packed_ ? at(index, 1) : places_.weight(index, 1);
  }
  const void* bias(int64_t index) const { return at(index, 2); }

 private:
  int64_t features(int64_t index) const { return places_.features(places_.layer(index)); }
  int64_t size(int64_t index, int k) const {  // of w_ih, w_hh, bias in memory
    if (k < 2 && !packed_) return 0;
    if (k == 2) return forward_ ? aligned(padded(H_) * bytes_) : 0;
    const int64_t in = k == 0 ? features(index) : H_;
    return aligned((forward_ ? in * padded(H_) : H_ * padded(in)) * bytes_);
  }
  int64_t bytes_of(int64_t begin, int64_t end) const {
    int64_t sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += size(i, 0) + size(i, 1) + size(i, 2);
    return sum;
  }
  const char* at(int64_t index, int k) const {
    const char* memory = memory_ + bytes_of(together_ ? 0 : places_.first_of_layer(index), index);
    for (int j = 0; j < k; ++j) memory += size(index, j);
    return memory;
  }

  Places places_;
  const TypedKernels& kernels_;
  bool forward_, packed_, together_;
  int64_t H_, bytes_, size_ = 0;
  char* memory_ = nullptr;
  std::atomic<bool> finite_{true};
};

}  // namespace fastrnn::cpu
