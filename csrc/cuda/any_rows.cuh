// How a block's thread walks the steps of rows of any lengths, padded or packed, with resets or
// not: the Walk of block.cuh that serves every call. What a step reads of the tensors is loaded
// kAhead steps ahead, into registers; the marks of reset and the starts of packed steps, one step
// ahead. Pointers advance with the steps.
#pragma once

#include "cuda/math.cuh"

namespace fastrnn::cuda {

// The rows of a block, and the elements of this thread. The block walks the steps of its longest
// row up or down; step i of the walk is time(i).
template <typename Group>
struct Owned {
  const Rows& rows;
  bool down;
  int hidden_size;
  int longest = 0;
  static constexpr uint32_t kNone = ~0u;
  uint32_t b[Group::kSlots];  // row of the batch, or kNone
  int length[Group::kSlots];  // 0: not there

  FASTRNN_DEVICE Owned(const Rows& rows, const Group& group, int64_t hidden_size, bool down)
      : rows(rows), down(down), hidden_size(static_cast<int>(hidden_size)) {
    const int64_t start = int64_t{blockIdx.x / Group::kBlocks} * Group::kRows;
    const bool sorted = rows.order || rows.start;  // then the first is the longest
    for (int r = 0; r < (sorted ? 1 : Group::kRows); ++r) {
      if (start + r >= rows.batch) break;
      const int length = static_cast<int>(row_length(rows, row_at(rows, start + r)));
      longest = length > longest ? length : longest;
    }
#pragma unroll
    for (int s = 0; s < Group::kSlots; ++s) {
      const int row = group.row(s);
      const bool there = row >= 0 && start + row < rows.batch;
      b[s] = there ? static_cast<uint32_t>(row_at(rows, start + row)) : kNone;
      length[s] = there ? static_cast<int>(row_length(rows, b[s])) : 0;
    }
  }
  FASTRNN_DEVICE int time(int i) const { return down ? longest - 1 - i : i; }
  // Whether the row has step i of the walk.
  FASTRNN_DEVICE bool at(int s, int i) const {
    return static_cast<unsigned>(time(i)) < static_cast<unsigned>(length[s]);
  }
  // The same for an element, which may be outside of the tensor.
  FASTRNN_DEVICE bool at(const Group& group, int e, int i) const {
    return at(Group::slot(e), i) && group.unit(e) < hidden_size;
  }
  // Whether the element is one of the tensor.
  FASTRNN_DEVICE bool has(const Group& group, int e) const {
    return b[Group::slot(e)] != kNone && group.unit(e) < hidden_size;
  }
  // For packed data: the rows before step i, modulo 2^32, as a step has fewer than 2^31.
  FASTRNN_DEVICE uint32_t start(int i) const {
    return i < longest ? static_cast<uint32_t>(rows.start[time(i)]) : 0;
  }
  // For each slot, whether a sequence begins between steps i - 1 and i of the walk, as the byte in
  // memory, so that nothing waits for it before it is tested. Zeros where there is no reset.
  FASTRNN_DEVICE void load_marks(int i, unsigned char (&marks)[Group::kSlots]) const {
    if (!rows.reset) return;
    const auto* reset = reinterpret_cast<const unsigned char*>(rows.reset);
    const int64_t later = down ? longest - i : i;
#pragma unroll
    for (int s = 0; s < Group::kSlots; ++s) {
      marks[s] = 0;
      if (at(s, i) && at(s, i - 1))
        marks[s] = reset[later * rows.reset_step_stride + b[s] * rows.reset_row_stride];
    }
  }
};

// Where the elements of a step of the walk lie in a sequence tensor.
template <typename Group>
struct Place {
  using S = typename Group::Storage;
  const Sequence& strides;
  S* at[Group::kSlots];  // of a slot's first unit
  int64_t step;          // bytes to the next step; of packed data, set at each

  FASTRNN_DEVICE Place(const Group& group, const Owned<Group>& own, void* data,
                       const Sequence& strides)
      : strides(strides) {
    step = (own.down ? -strides.step_stride : strides.step_stride) * int{sizeof(S)};
#pragma unroll
    for (int s = 0; s < Group::kSlots; ++s) {
      at[s] = static_cast<S*>(data) + group.unit(0);
      if (own.length[s] > 0) at[s] += place(own.rows, strides, own.time(0), own.b[s]);
    }
  }
  FASTRNN_DEVICE void set_rows_to_next(uint32_t rows) {
    step = static_cast<int>(rows) * strides.row_stride * int{sizeof(S)};
  }
  FASTRNN_DEVICE void next() {
#pragma unroll
    for (int s = 0; s < Group::kSlots; ++s) at[s] = further(at[s], step);
  }
};

template <typename S>
FASTRNN_DEVICE void put_zeros(const Rows& rows, const Sequence& x, int64_t b, int64_t unit,
                              int64_t from) {
  if (!x.data || rows.start) return;
  for (int64_t t = from; t < rows.seq_len; ++t)
    narrow(static_cast<S*>(x.data) + place(rows, x, t, b) + unit, Accumulate<S>(0));
}

template <typename Group, int kAhead>
class AnyForward {
  using S = typename Group::Storage;
  static constexpr int kElements = Group::kElements, kSlots = Group::kSlots;
  static_assert(kAhead % 2 == 0, "the copy of the state is that of the step's parity");

 public:
  static constexpr int kUnroll = kAhead;
  using Values = S[kElements];

  FASTRNN_DEVICE AnyForward(const Group& group, const ForwardRecurrence& r,
                            const ForwardDirection& d)
      : group_(group),
        r_(r),
        d_(d),
        own_(r.rows, group, r.hidden_size, d.reverse),
        asked_(group, own_, d.igates.data, d.output),
        done_(group, own_, d.output.data, d.output),
        coming_(r.rows.start ? own_.start(1) : 0) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int unit = group.unit(e);
      bias_[e] = 0;
      if (unit < r.hidden_size)
        bias_[e] = load_or_zero<float, S>(d.b_ih, unit) + load_or_zero<float, S>(d.b_hh, unit);
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s) cut_[s] = 0;
  }

  FASTRNN_DEVICE int steps() const { return own_.longest; }
  FASTRNN_DEVICE bool has(int e) const { return own_.has(group_, e); }
  FASTRNN_DEVICE int64_t row(int e) const { return own_.b[Group::slot(e)]; }
  FASTRNN_DEVICE void begin() {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) ask(u, u);
    own_.load_marks(1, cut_);
  }
  FASTRNN_DEVICE void start(int u, int, const unsigned char*, const Values&,
                            float (&start)[kElements]) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) start[e] = widen(igates_[u][e]) + bias_[e];
  }
  // Whether the row has step i.
  FASTRNN_DEVICE bool here(int e, int i) const { return own_.at(group_, e, i); }
  // What the next step has for h_prev.
  FASTRNN_DEVICE S next(int e, S h) const {
    S zero;
    narrow(&zero, 0.0f);
    return cut_[Group::slot(e)] ? zero : h;
  }
  FASTRNN_DEVICE void after(int u, int i, const Values& h) {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (here(e, i)) done_.at[Group::slot(e)][Group::offset(e)] = h[e];
    if (d_.copy.data) {
      const int64_t to_copy = static_cast<char*>(d_.copy.data) - static_cast<char*>(d_.output.data);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (here(e, i)) further(done_.at[Group::slot(e)], to_copy)[Group::offset(e)] = h[e];
    }
    if (r_.rows.start) done_.set_rows_to_next(own_.start(i + 1) - own_.start(i));
    done_.next();
    ask(u, i + kAhead);
    own_.load_marks(i + 2, cut_);
  }
  FASTRNN_DEVICE void end(const unsigned char*, const Values&) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (!has(e)) continue;
      const int s = Group::slot(e);
      const int64_t b = unknown(own_.b[s]);
      put_zeros<S>(r_.rows, d_.output, b, group_.unit(e), own_.length[s]);
      put_zeros<S>(r_.rows, d_.copy, b, group_.unit(e), own_.length[s]);
    }
  }

 private:
  FASTRNN_DEVICE void ask(int u, int i) {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (here(e, i)) igates_[u][e] = asked_.at[Group::slot(e)][Group::offset(e)];
    if (r_.rows.start) {
      asked_.set_rows_to_next(coming_ - own_.start(i));
      coming_ = own_.start(i + 2);
    }
    asked_.next();
  }

  const Group& group_;
  const ForwardRecurrence& r_;
  const ForwardDirection& d_;
  Owned<Group> own_;
  Place<Group> asked_, done_;
  uint32_t coming_;  // for packed data, the start of the step after those already asked for
  float bias_[kElements];
  S igates_[kAhead][kElements];
  unsigned char cut_[kSlots];  // whether h_prev of the next step is zero
};

template <typename Group, int kAhead>
class AnyBackward {
  using S = typename Group::Storage;
  static constexpr int kElements = Group::kElements, kSlots = Group::kSlots;
  static_assert(kAhead % 2 == 0, "the copy of the state is that of the step's parity");

 public:
  static constexpr int kUnroll = kAhead;
  using Values = S[kElements];

  FASTRNN_DEVICE AnyBackward(const Group& group, const BackwardRecurrence& r,
                             const BackwardDirection& d)
      : group_(group),
        r_(r),
        d_(d),
        own_(r.rows, group, r.hidden_size, !d.reverse),
        asked_(group, own_, d.output.data, d.output),
        asked_grad_(group, own_, d.grad_output.data, d.grad_output),
        done_(group, own_, d.grad_pre.data, d.output),
        coming_(r.rows.start ? own_.start(1) : 0) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int64_t at = row(e) * r.hidden_size + group.unit(e);
      grad_hx_[e] = has(e) ? load_or_zero<float, S>(d.grad_hn, at) : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kAhead * kElements; ++n)
      narrow(&grad_output_[n / kElements][n % kElements], 0.0f);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) cut_[s] = 0;
  }

  // One more where the gradient of hx is wanted.
  FASTRNN_DEVICE int steps() const { return own_.longest + (d_.grad_hx ? 1 : 0); }
  FASTRNN_DEVICE bool has(int e) const { return own_.has(group_, e); }
  FASTRNN_DEVICE int64_t row(int e) const { return own_.b[Group::slot(e)]; }
  FASTRNN_DEVICE void begin() {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) ask(u, u);
    own_.load_marks(0, cut_);
  }
  FASTRNN_DEVICE void start(int u, int, const unsigned char*, const Values&,
                            float (&start)[kElements], float (&slopes)[kElements]) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      start[e] = widen(grad_output_[u][e]);
      slopes[e] = slope(widen(output_[u][e]), r_.nonlinearity);
    }
  }
  FASTRNN_DEVICE bool here(int e, int i) const { return own_.at(group_, e, i); }
  // The part of c, from the step walked before, that goes on to h; the rest goes to hx.
  FASTRNN_DEVICE float take(int e, int i, float c) {
    const bool here = this->here(e, i), came = this->here(e, i - 1);
    const bool ends = came && (!here || cut_[Group::slot(e)]);
    const float grad_h = came ? c : grad_hx_[e];
    const float to_h = ends ? 0.0f : grad_h, to_hx = ends ? grad_h : grad_hx_[e];
    grad_hx_[e] = here ? 0.0f : to_hx;
    return to_h;
  }
  FASTRNN_DEVICE void after(int u, int i, const Values& value) {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (here(e, i)) done_.at[Group::slot(e)][Group::offset(e)] = value[e];
    if (r_.rows.start) done_.set_rows_to_next(own_.start(i + 1) - own_.start(i));
    done_.next();
    ask(u, i + kAhead);
    own_.load_marks(i + 1, cut_);
  }
  FASTRNN_DEVICE float grad_hx(int e) const { return grad_hx_[e]; }
  FASTRNN_DEVICE void end(const unsigned char*, const Values&) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (!has(e)) continue;
      const int s = Group::slot(e);
      put_zeros<S>(r_.rows, d_.grad_pre, unknown(own_.b[s]), group_.unit(e), own_.length[s]);
    }
  }

 private:
  FASTRNN_DEVICE void ask(int u, int i) {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (here(e, i)) output_[u][e] = asked_.at[Group::slot(e)][Group::offset(e)];
    if (d_.grad_output.data) {
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (here(e, i)) grad_output_[u][e] = asked_grad_.at[Group::slot(e)][Group::offset(e)];
    }
    if (r_.rows.start) {
      const uint32_t rows = coming_ - own_.start(i);
      coming_ = own_.start(i + 2);
      asked_.set_rows_to_next(rows);
      asked_grad_.set_rows_to_next(rows);
    }
    asked_.next();
    asked_grad_.next();
  }

  const Group& group_;
  const BackwardRecurrence& r_;
  const BackwardDirection& d_;
  Owned<Group> own_;
  Place<Group> asked_, asked_grad_, done_;
  uint32_t coming_;  // for packed data, the start of the step after those already asked for
  float grad_hx_[kElements];  // grad_hn until the row's first step
  S output_[kAhead][kElements], grad_output_[kAhead][kElements];
  unsigned char cut_[kSlots];  // whether a sequence begins between this step and the one before
};

}  // namespace fastrnn::cuda
