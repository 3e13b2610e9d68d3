// How a block walks the steps of rows that all have every step, without resets: the Walk of
// block.cuh for most calls. Nothing is asked of a step but its numbers.
//
// What a step reads of the tensors is copied kSlots - 1 steps ahead to a ring of kSlots steps in
// shared memory, without registers or a wait. The state that it writes is stored during the next
// step, once that has asked for the state.
#pragma once

#include "cuda/math.cuh"

namespace fastrnn::cuda {

// The group's rows and direction of a call.
template <typename Group>
struct WholeRows {
  int64_t first;  // of the batch, in the group
  int batch, hidden_size, steps;
  bool down;

  FASTRNN_DEVICE WholeRows(const Rows& rows, int64_t hidden_size, bool down)
      : first(int64_t{blockIdx.x / Group::kBlocks} * Group::kRows),
        batch(static_cast<int>(rows.batch)),
        hidden_size(static_cast<int>(hidden_size)),
        steps(static_cast<int>(rows.seq_len)),
        down(down) {}
  FASTRNN_DEVICE bool has(int row, int unit) const {
    return row >= 0 && first + row < batch && unit < hidden_size;
  }
  template <typename S>
  FASTRNN_DEVICE S* at(const Sequence& x, int row, int unit) const {
    return static_cast<S*>(x.data) + (down ? steps - 1 : 0) * x.step_stride +
           (first + row) * x.row_stride + unit;
  }
  FASTRNN_DEVICE int64_t bytes_to_next(const Sequence& x, int size) const {
    return (down ? -x.step_stride : x.step_stride) * size;
  }
};

// A sequence tensor of which each thread moves its own elements.
template <typename Group>
class Elements {
  using S = typename Group::Storage;
  static constexpr int kElements = Group::kElements, kSlots = Group::kSlots;

 public:
  FASTRNN_DEVICE Elements(const Group& group, const WholeRows<Group>& rows, const Sequence& x) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
      at_[s] = rows.template at<S>(x, group.row(s) < 0 ? 0 : group.row(s), group.unit(0));
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (x.data && rows.has(group.row(Group::slot(e)), group.unit(e))) mine_ |= 1u << e;
    mine_ = unknown(mine_);
    step_ = rows.bytes_to_next(x, sizeof(S));
  }
  FASTRNN_DEVICE void next() {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) at_[s] = further(at_[s], step_);
  }
  // Of the ring's slot, this thread's part.
  FASTRNN_DEVICE static unsigned char* part(unsigned char* slot) { return slot + threadIdx.x * 4; }
  FASTRNN_DEVICE static void clear(unsigned char* slot) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) *element(slot, e) = 0;
  }
  FASTRNN_DEVICE void copy(unsigned char* slot) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (mine_ >> e & 1) copy_async<4>(element(slot, e), at_[Group::slot(e)] + Group::offset(e));
  }
  FASTRNN_DEVICE static void take(const Group&, unsigned char* slot, float (&x)[kElements]) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) x[e] = load_shared(element(slot, e));
  }
  FASTRNN_DEVICE void store(const unsigned char*, const S (&h)[kElements],
                            int64_t further_on = 0) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (mine_ >> e & 1) further(at_[Group::slot(e)], further_on)[Group::offset(e)] = h[e];
  }

 private:
  FASTRNN_DEVICE static float* element(unsigned char* slot, int e) {
    return reinterpret_cast<float*>(slot) + e * Group::kThreads + threadIdx.x;
  }

  S* at_[kSlots];
  int64_t step_;
  uint32_t mine_ = 0;
};

// A sequence tensor in 16 bits: a warp moves the rows of its own units, each lane 16 bytes of them.
// Those of neighboring lanes are in neighboring rows, and so in different banks.
template <typename Group>
class Pieces {
  using S = typename Group::Storage;
  static constexpr int kElements = Group::kElements;
  static constexpr int kPieces = Group::kRows * Group::kWarpUnits / 8,
                       kPitch = Group::kWarpUnits * 2 + 16, kWarpBytes = Group::kRows * kPitch;
  static constexpr int kParts = Group::kTiles * Group::kStacked;
  static_assert(kPieces <= 32 && kParts <= 2 && kElements == 4 * kParts);

 public:
  FASTRNN_DEVICE Pieces(const Group& group, const WholeRows<Group>& rows, const Sequence& x) {
    const int row = lane() % Group::kRows, unit = group.warp_unit() + lane() / Group::kRows * 8;
    at_ = rows.template at<S>(x, row, unit);
    mine_ = unknown(x.data && lane() < kPieces && rows.has(row, unit)) != 0;
    step_ = rows.bytes_to_next(x, sizeof(S));
    in_state_ = row * Group::kRowBytes + unit * 2;
  }
  FASTRNN_DEVICE void next() { at_ = further(at_, step_); }
  FASTRNN_DEVICE static void clear(unsigned char* slot) {
    for (int i = lane(); i < kWarpBytes / 16; i += 32)
      reinterpret_cast<uint4*>(warps(slot))[i] = make_uint4(0, 0, 0, 0);
  }
  FASTRNN_DEVICE void copy(unsigned char* slot) const {
    if (!mine_) return;
    copy_async<16>(warps(slot) + lane() % Group::kRows * kPitch + lane() / Group::kRows * 16, at_);
  }
  FASTRNN_DEVICE static void take(const Group&, unsigned char* slot, float (&x)[kElements]) {
    // Matrix m of a part: its eight rows, and eight units of them.
    const int part = lane() / 16, across = Group::kTiles > 1 ? part * 8 * kPitch : part * 32;
    uint32_t pairs[2 * kParts];
    load_transposed(
        pairs, warps(slot) + lane() % 8 * kPitch + lane() / 8 % 2 * 16 + (kParts > 1 ? across : 0));
#pragma unroll
    for (int e = 0; e < kElements; ++e) x[e] = widen(half_of<S>(pairs[e / 2], e % 2));
  }
  FASTRNN_DEVICE void store(const unsigned char* state, const S (&)[kElements],
                            int64_t further_on = 0) const {
    if (mine_)
      *reinterpret_cast<uint4*>(further(at_, further_on)) =
          load_shared(reinterpret_cast<const uint4*>(state + in_state_));
  }

 private:
  FASTRNN_DEVICE static int lane() { return threadIdx.x % 32; }
  FASTRNN_DEVICE static unsigned char* warps(unsigned char* slot) {
    return slot + static_cast<int>(threadIdx.x) / 32 * kWarpBytes;
  }

  S* at_;
  int64_t step_;
  int in_state_;
  bool mine_;
};

template <typename Group>
using Stream = std::conditional_t<Group::kInPieces, Pieces<Group>, Elements<Group>>;

// The ring of kTensors tensors, and how far it has been filled.
template <typename Group, int kTensors>
class Ring {
 public:
  static constexpr int kSlots = Group::kOwn.slots(), kSlotBytes = Group::kOwn.slot_bytes();
  static_assert(kSlots > 1);

  FASTRNN_DEVICE static unsigned char* slot(int i, int tensor) {
    return shared_memory<unsigned char>() + Group::kOwn.ring_at() +
           (i % kSlots * kTensors + tensor) * kSlotBytes;
  }
  // Zeros stay where a tensor has nothing.
  FASTRNN_DEVICE static void clear() {
    for (int i = 0; i < kSlots; ++i)
      for (int tensor = 0; tensor < kTensors; ++tensor) Stream<Group>::clear(slot(i, tensor));
    warp_sync();
  }
  // The oldest step has come, for all lanes of the warp.
  FASTRNN_DEVICE static void wait() {
    wait_copies<kSlots - 2>();
    if (Group::kInPieces) warp_sync();
  }
};

template <typename Group>
class WholeForward {
  using S = typename Group::Storage;
  static constexpr int kElements = Group::kElements;
  using Slots = Ring<Group, 1>;

 public:
  static constexpr int kUnroll = 2;

  FASTRNN_DEVICE WholeForward(const Group& group, const ForwardRecurrence& r,
                              const ForwardDirection& d)
      : group_(group),
        rows_(r.rows, r.hidden_size, d.reverse),
        igates_(group, rows_, d.igates),
        output_(group, rows_, d.output),
        to_copy_(d.copy.data ? static_cast<char*>(d.copy.data) - static_cast<char*>(d.output.data)
                             : 0) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int unit = group.unit(e);
      bias_[e] = 0;
      if (unit < rows_.hidden_size)
        bias_[e] = load_or_zero<float, S>(d.b_ih, unit) + load_or_zero<float, S>(d.b_hh, unit);
    }
  }

  FASTRNN_DEVICE int steps() const { return rows_.steps; }
  FASTRNN_DEVICE bool has(int e) const {
    return rows_.has(group_.row(Group::slot(e)), group_.unit(e));
  }
  FASTRNN_DEVICE int64_t row(int e) const { return rows_.first + group_.row(Group::slot(e)); }
  FASTRNN_DEVICE void begin() {
    Slots::clear();
    for (int i = 0; i < Slots::kSlots - 1; ++i) ask(i);
  }
  FASTRNN_DEVICE void start(int, int i, const unsigned char* state, const S (&h)[kElements],
                            float (&start)[kElements]) {
    Slots::wait();
    Stream<Group>::take(group_, Slots::slot(i, 0), start);
#pragma unroll
    for (int e = 0; e < kElements; ++e) start[e] += bias_[e];
    ask(i + Slots::kSlots - 1);
    if (i > 0) store(state, h);
  }
  FASTRNN_DEVICE static constexpr bool here(int, int) { return true; }
  FASTRNN_DEVICE static S next(int, S h) { return h; }
  FASTRNN_DEVICE void after(int, int, const S (&)[kElements]) const {}
  FASTRNN_DEVICE void end(const unsigned char* state, const S (&h)[kElements]) {
    if (rows_.steps > 0) store(state, h);
  }

 private:
  FASTRNN_DEVICE void ask(int i) {
    if (i < rows_.steps) igates_.copy(Slots::slot(i, 0));
    commit_copies();
    igates_.next();
  }
  FASTRNN_DEVICE void store(const unsigned char* state, const S (&h)[kElements]) {
    output_.store(state, h);
    if (to_copy_ != 0) output_.store(state, h, to_copy_);
    output_.next();
  }

  const Group& group_;
  WholeRows<Group> rows_;
  Stream<Group> igates_, output_;
  int64_t to_copy_;  // bytes from output to its copy; 0: none
  float bias_[kElements];
};

template <typename Group>
class WholeBackward {
  using S = typename Group::Storage;
  static constexpr int kElements = Group::kElements;
  using Slots = Ring<Group, 2>;

 public:
  static constexpr int kUnroll = 2;

  FASTRNN_DEVICE WholeBackward(const Group& group, const BackwardRecurrence& r,
                               const BackwardDirection& d)
      : group_(group),
        rows_(r.rows, r.hidden_size, !d.reverse),
        output_(group, rows_, d.output),
        grad_output_(group, rows_, d.grad_output),
        grad_pre_(group, rows_, d.grad_pre),
        relu_(unknown(r.nonlinearity == Nonlinearity::kRelu) != 0),
        steps_(rows_.steps + (d.grad_hx ? 1 : 0)) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int64_t at = row(e) * r.hidden_size + group.unit(e);
      grad_[e] = has(e) ? load_or_zero<float, S>(d.grad_hn, at) : 0.0f;
    }
  }

  // One more where the gradient of hx is wanted.
  FASTRNN_DEVICE int steps() const { return steps_; }
  FASTRNN_DEVICE bool has(int e) const {
    return rows_.has(group_.row(Group::slot(e)), group_.unit(e));
  }
  FASTRNN_DEVICE int64_t row(int e) const { return rows_.first + group_.row(Group::slot(e)); }
  FASTRNN_DEVICE void begin() {
    Slots::clear();
    for (int i = 0; i < Slots::kSlots - 1; ++i) ask(i);
  }
  FASTRNN_DEVICE void start(int, int i, const unsigned char* state, const S (&value)[kElements],
                            float (&start)[kElements], float (&slopes)[kElements]) {
    float h[kElements];
    Slots::wait();
    Stream<Group>::take(group_, Slots::slot(i, 0), h);
    Stream<Group>::take(group_, Slots::slot(i, 1), start);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (i == 0) start[e] += grad_[e];
      slopes[e] = slope(h[e], relu_ ? Nonlinearity::kRelu : Nonlinearity::kTanh);
    }
    ask(i + Slots::kSlots - 1);
    if (i > 0) store(state, value);
  }
  FASTRNN_DEVICE static constexpr bool here(int, int) { return true; }
  FASTRNN_DEVICE float take(int e, int, float c) {
    grad_[e] = c;
    return c;
  }
  FASTRNN_DEVICE void after(int, int, const S (&)[kElements]) const {}
  FASTRNN_DEVICE float grad_hx(int e) const { return grad_[e]; }
  FASTRNN_DEVICE void end(const unsigned char* state, const S (&value)[kElements]) {
    if (steps_ == rows_.steps && steps_ > 0) store(state, value);  // else it is stored
  }

 private:
  FASTRNN_DEVICE void ask(int i) {
    if (i < rows_.steps) {
      output_.copy(Slots::slot(i, 0));
      grad_output_.copy(Slots::slot(i, 1));
    }
    commit_copies();
    output_.next();
    grad_output_.next();
  }
  FASTRNN_DEVICE void store(const unsigned char* state, const S (&value)[kElements]) {
    grad_pre_.store(state, value);
    grad_pre_.next();
  }

  const Group& group_;
  WholeRows<Group> rows_;
  Stream<Group> output_, grad_output_, grad_pre_;
  bool relu_;
  int steps_;
  float grad_[kElements];  // of h after the last step, then what goes on from the step before
};

}  // namespace fastrnn::cuda
