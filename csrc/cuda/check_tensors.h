// What a check computes on: its sizes, its tensors in one workspace, and the steps of each row.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/check.cuh"
#include "cuda/check.h"

namespace fastrnn::cuda {
namespace {

int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

struct Sizes {
  int64_t seq_len, batch, hidden_size, directions;
  bool full;

  // Else two groups of rows, the second not full, with units missing: for whole rows as many as
  // leave 16 bytes whole. The longest goes round the ring of whole_rows.cuh. By steps a batch has
  // more rows than a warp lanes, and full more than weight_grads_kernel takes at a time.
  Sizes(const Choice& c, const Trial& trial) {
    const int64_t rows = c.units ? c.rows : 32, units = c.units ? c.units : 64;
    seq_len = trial.bare ? 2 : trial.full ? 11 : 5;
    batch = trial.bare ? 1 : trial.full ? 2 * rows + 1 : rows + 1;
    const int64_t whole = trial.lengths == Lengths::kWhole ? units - 8 : units - 3;
    hidden_size = trial.bare ? units / 4 + 1 : trial.full ? units : whole;
    directions = trial.bare ? 1 : 2;
    full = trial.full;
  }
  // Of the gradients of the weights.
  int64_t input_size() const { return full ? hidden_size + 5 : hidden_size - 1; }
  int64_t features() const { return directions * hidden_size; }
  int64_t elements() const { return seq_len * batch * features(); }
  int64_t states() const { return directions * batch * hidden_size; }
};

// Takes parts of the workspace, or counts them where that is null.
struct Parts {
  char* base;
  int64_t used = 0;

  template <typename T = void>
  T* take(int64_t bytes) {
    char* const part = base ? base + used : nullptr;
    used += (bytes + 255) / 256 * 256;
    return reinterpret_cast<T*>(part);
  }
};

// The tensors of a check.
struct Tensors {
  int64_t used;
  void *w_hh, *b_ih, *b_hh, *hx, *igates, *grad_output, *grad_hn;     // filled
  void* input;                                                        // likewise
  void *output, *copy, *hn, *grad_pre, *grad_hx, *previous, *masked;  // NaN at first
  void *product, *grad_w_ih, *grad_w_hh, *grad_b_ih, *grad_b_hh;
  int64_t *given_lengths, *lengths, *start, *order, *right_order;
  bool* reset;
  Findings* found;
  GaveUp* gave_up;

  Tensors(const Sizes& s, Dtype dtype, char* base) {
    Parts parts{base};
    const auto take = [&](int64_t count) { return parts.take(count * bytes_of(dtype)); };
    w_hh = take(s.directions * s.hidden_size * s.hidden_size);
    b_ih = take(s.features());
    b_hh = take(s.features());
    hx = take(s.states());
    igates = take(s.elements());
    grad_output = take(s.elements());
    grad_hn = take(s.states());
    input = take(s.seq_len * s.batch * s.input_size());
    output = take(s.elements());
    copy = take(s.elements());
    hn = take(s.states());
    grad_pre = take(s.elements());
    grad_hx = parts.take(s.states() * 8);  // in any type
    previous = take(s.elements());
    masked = take(s.elements());
    grad_w_ih = take(s.features() * s.input_size());
    grad_w_hh = take(s.features() * s.hidden_size);
    grad_b_ih = take(s.features());
    grad_b_hh = take(s.features());
    product = parts.take(s.states() * 8);
    given_lengths = parts.take<int64_t>(s.batch * 8);
    lengths = parts.take<int64_t>((s.batch + s.seq_len) * 8);
    start = base ? lengths + s.batch : nullptr;  // of packed rows, behind the lengths
    order = parts.take<int64_t>(s.batch * 8);
    right_order = parts.take<int64_t>(s.batch * 8);
    reset = parts.take<bool>(s.seq_len * s.batch);
    found = parts.take<Findings>(sizeof(Findings));
    gave_up = parts.take<GaveUp>(sizeof(GaveUp));
    used = parts.used;
  }
};

// One direction's part of a tensor; of none, none.
void* part(void* data, int64_t d, int64_t count, Dtype dtype) {
  return data ? static_cast<char*>(data) + d * count * bytes_of(dtype) : nullptr;
}

// Rows of many lengths, the first of which has every step.
struct Layout {
  std::vector<int64_t> lengths, start, order;
  std::vector<char> reset;

  Layout(Lengths kind, const Sizes& s) : order(s.batch) {
    const bool packed = kind == Lengths::kPacked;
    for (int64_t b = 0; b < s.batch; ++b) {
      const int64_t some =
          packed ? std::max<int64_t>(s.seq_len - (b + 1) / 2, 1) : b * 4 % (s.seq_len + 1);
      lengths.push_back(kind == Lengths::kWhole || b == 0 ? s.seq_len : some);
    }
    start.push_back(0);
    for (int64_t t = 0; t < s.seq_len; ++t) {
      const auto there = std::count_if(lengths.begin(), lengths.end(),
                                       [&](int64_t length) { return !packed || length > t; });
      start.push_back(start.back() + there);
      for (int64_t b = 0; b < s.batch; ++b) reset.push_back((t + 2 * b) % 3 == 0);
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  }
  int64_t active(int64_t t) const { return start[t + 1] - start[t]; }
};

}  // namespace
}  // namespace fastrnn::cuda
