// One layer and direction, forward, for a thread's rows.
#pragma once

#include "cpu/rows.h"

namespace fastrnn::cpu {
namespace {

// Tile plan: a block of up to kBlockRows rows runs through all steps. A step is a product of the
//   block's rows with the packed w_hh: a few rows by a panel of columns in registers at a time.
//   With enough rows the input projection joins that product; with few, it is made for a chunk of
//   steps at once, so that w_ih is read once a chunk. Either way an element sums bias, input terms
//   and state terms in this order, and the result is the same. Dot products with weights that are
//   not packed sum in another order: whether they take the projection too must not depend on how
//   many rows a thread has, or results would.
// Sync plan: none where a thread has all columns, for a row needs only its own past. Where columns
//   are shared, all wait at the end of a step: each has written its columns of h before any reads.
// Limits: none. h_prev is read from the output itself, or, where products take no rows of 16 bits,
//   from float copies of it. A leaky state stays in the accumulation type: see rnn.h.
// Why: with the projection, activation and time loop outside, memory and dispatch cost more than
//   the sums (benchmarks/test_overhead.py, benchmarks/test_kernels.py).
template <typename S>
class ForwardBlock {
  using C = typename Accumulate<S>::type;

 public:
  ForwardBlock(const ForwardTask& task, const Block& block, void* scratch)
      : task_(task),
        plan_(*task.plan),
        block_(block),
        H_(task.hidden_size),
        I_(task.input_size),
        layout_(layout_of(plan_.form, Layout::kTransposed)),
        fused_(block.rows >= plan_.fused_rows[task.above]),
        chunk_(fused_ ? 1 : kBlockRows / block.rows) {
    const bool extended = task.gates.data || task.leak != Leak::kNone;
    Arena<C> arena(scratch, I_, H_, extended);
    inputs_ = arena.take(kBlockRows * I_);
    igates_ = arena.take(fused_ ? 0 : kBlockRows * padded(H_));
    for (C*& states : states_) states = arena.take(kNarrow<S> ? block.rows * H_ : 0);
    C* initial = arena.take(kNarrow<S> ? block.rows * H_ : 0);
    zeros_ = arena.take_zeros(H_);
    for (int64_t i = 0; i < block.rows; ++i) {
      hx_rows_[i] =
          task.hx ? operand<S, C>(layout_, hx_row(i), nullptr, initial + i * H_, H_) : zeros_;
    }
    for (int64_t k = 0; k < kBlockRows && task.gates.data; ++k)
      start_rows_[k] =
          k == 0 ? arena.take(kBlockRows * padded(H_)) : start_rows_[0] + k * padded(H_);
    projection_ = {.layout = layout_,
                   .terms = {{x_rows_, I_, task.w_ih, plan_.fetch_w_ih[task.above]}},
                   .bias = static_cast<const C*>(task.bias),
                   .out = chunk_rows_,
                   .columns = H_};
    step_ = {.layout = layout_,
             .split = plan_.split,
             .out = out_rows_,
             .columns = H_,
             .epilogue = epilogue_of(task.nonlinearity)};
    if (task.gates.data) {
      projection_.start = start_rows_;
      projection_.bias = nullptr;
    }
    if (fused_) {
      step_.terms[0] = projection_.terms[0];
      step_.bias = projection_.bias;
    }
    if (task.leak != Leak::kNone) prepare_leak(arena);
  }

  void run() {
    const int64_t T = block_.seq_len();
    for (int64_t s0 = 0; s0 < T; s0 += chunk_) {
      const int64_t s1 = s0 + chunk_ < T ? s0 + chunk_ : T;
      const int64_t gathered = gather_inputs(s0, s1);
      if (!fused_) run_product<S>(projection_, gathered, task_.share);
      int64_t done = 0;  // of the chunk's rows
      for (int64_t s = s0; s < s1; ++s) done += step(s, gate_rows_ + done);
    }
    if (task_.share.part == 0) pass_hx_on();
  }

 private:
  const S* hx_row(int64_t i) const { return hx_row(task_.hx, i); }
  const S* hx_row(const void* hx, int64_t i) const {
    return static_cast<const S*>(hx) + block_.original(i) * task_.hx_row_stride;
  }
  S* hn_row(int64_t i) const { return static_cast<S*>(task_.hn) + block_.original(i) * H_; }

  // Rows that leak, and their memory: of a current that is not stored, of 16 bits in float.
  void prepare_leak(Arena<C>& arena) {
    const int64_t n = block_.rows * H_;
    C* const initial = arena.take(kNarrow<S> ? n : 0);
    rounded_ = arena.take(kNarrow<S> && layout_ != Layout::kPairs ? n : 0);
    currents_ = arena.take(kNarrow<S> && task_.leak == Leak::kCurrent ? n : 0);
    kept_ = arena.take(kNarrow<S> && task_.kept.data ? n : 0);
    for (int64_t i = 0; i < block_.rows; ++i) {
      leaky_hx_[i] = zeros_;
      if (!task_.leaky_hx) continue;
      leaky_hx_[i] = widened<S, C>(hx_row(task_.leaky_hx, i), nullptr, initial + i * H_, H_);
    }
    step_.leak = {.form = task_.leak,
                  .alpha = static_cast<const C*>(task_.alpha),
                  .carried = carried_rows_,
                  .carry = task_.leak == Leak::kCurrent ? current_rows_ : nullptr,
                  .kept = task_.kept.data ? kept_rows_ : nullptr};
    for (int64_t i = 0; i < block_.rows; ++i) {
      if constexpr (kNarrow<S>) {
        current_rows_[i] = currents_ + i * H_;
        kept_rows_[i] = kept_ + i * H_;
      } else {
        current_rows_[i] = hn_row(i);  // each thread its own columns
      }
    }
  }

  // Of step t: where the state leaks from, and where what is kept goes.
  void place_leak(int64_t s, int64_t t, int64_t i) {
    if (!block_.continues(t, i)) {
      carried_rows_[i] = block_.begins_anew(t, i) ? zeros_ : leaky_hx_[i];
    } else if (task_.leak == Leak::kCurrent) {
      carried_rows_[i] = current_rows_[i];
    } else {
      carried_rows_[i] = state_row(s - 1, block_.walk.before(t), i);
    }
    if constexpr (!kNarrow<S>) {
      if (task_.kept.data) kept_rows_[i] = block_.row<S>(task_.kept, t, i);
    }
  }

  // Where the projection of a row starts: the biases and the gates.
  void add_gates(int64_t t, int64_t i, C* start) const {
    const C* bias = static_cast<const C*>(task_.bias);
    widen(start, block_.row<const S>(task_.gates, t, i), H_);
    for (int64_t k = 0; k < H_; ++k) start[k] += bias[k];
  }

  // The rows of the input at steps s0 .. s1 - 1 of the walk.
  int64_t gather_inputs(int64_t s0, int64_t s1) {
    int64_t gathered = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = block_.walk.time(s), n = block_.active(t);
      for (int64_t i = 0; i < n; ++i, ++gathered) {
        const S* x = block_.row<const S>(task_.input, t, i);
        const S* mask =
            task_.input_mask.data ? block_.row<const S>(task_.input_mask, t, i) : nullptr;
        x_rows_[gathered] = operand<S, C>(layout_, x, mask, inputs_ + gathered * I_, I_);
        if (task_.gates.data) add_gates(t, i, start_rows_[gathered]);
        if (!fused_) gate_rows_[gathered] = chunk_rows_[gathered] = igates_ + gathered * padded(H_);
      }
    }
    return gathered;
  }

  // The s-th step of the walk, from its igates unless it makes them itself. Returns its rows.
  int64_t step(int64_t s, const C* const* gate_rows) {
    const Share& share = task_.share;
    const int64_t t = block_.walk.time(s), n = block_.active(t);
    for (int64_t i = 0; i < n; ++i) {
      h_rows_[i] = h_prev_row(s, t, i);
      out_rows_[i] = state_row(s, t, i);
      if (task_.leak != Leak::kNone) place_leak(s, t, i);
    }
    const bool skip = s == 0 && task_.skips_zeros;  // alike in every thread, as sums change
    step_.terms[1] = {h_rows_, skip ? 0 : H_, task_.w_hh, plan_.fetch_w_hh};
    step_.start = !fused_ ? gate_rows : task_.gates.data ? start_rows_ : nullptr;
    turn(step_, plan_, t);
    fetch_ahead(s, n);
    run_product<S>(step_, n, share);
    wait(share);
    for (int64_t i = share.part; i < n; i += share.parts) store_state(t, i);
    return n;
  }

  const void* h_prev_row(int64_t s, int64_t t, int64_t i) const {
    if (!block_.continues(t, i)) return block_.begins_anew(t, i) ? zeros_ : hx_rows_[i];
    if (kNarrow<S> && layout_ != Layout::kPairs)
      return (task_.leak == Leak::kNone ? states_[(s + 1) & 1] : rounded_) + i * H_;
    return block_.row<const S>(task_.output, block_.walk.before(t), i);
  }
  // Where a product leaves the new state.
  C* state_row(int64_t s, int64_t t, int64_t i) const {
    if constexpr (kNarrow<S>) {
      return states_[s & 1] + i * H_;
    } else {
      return block_.row<S>(task_.output, t, i);
    }
  }

  // Let the products of step s fetch what the next step writes and reads.
  void fetch_ahead(int64_t s, int64_t n) {
    const bool fetch = plan_.fetch_rows && s + chunk_ < block_.seq_len();
    const bool fetch_in = fetch && I_ >= H_;  // each tile fetches its own columns, of H
    for (int64_t i = 0; i < n && fetch; ++i) {
      ahead_out_[i] = out_rows_[i] + block_.walk.stride(task_.output);
      if (fetch_in)
        ahead_in_[i] = block_.row<const C>(task_.input, block_.walk.time(s + chunk_), i);
    }
    step_.ahead[0] = fetch ? ahead_out_ : nullptr;
    step_.ahead[1] = fetch_in ? ahead_in_ : nullptr;
  }

  // The state as it is stored: into the output and its copy and, of a last step, into hn.
  void store_state(int64_t t, int64_t i) {
    S* out = block_.row<S>(task_.output, t, i);
    if constexpr (kNarrow<S>) {
      narrow(out, out_rows_[i], H_);
      if (layout_ != Layout::kPairs)
        widen(task_.leak == Leak::kNone ? out_rows_[i] : rounded_ + i * H_, out, H_);
      if (task_.leak != Leak::kNone && task_.kept.data)
        narrow(block_.row<S>(task_.kept, t, i), kept_rows_[i], H_);
    }
    if (task_.copy.data) std::memcpy(block_.row<S>(task_.copy, t, i), out, H_ * sizeof(S));
    if (!block_.is_last(t, i)) return;
    if (task_.leak != Leak::kCurrent) {
      std::memcpy(hn_row(i), out, H_ * sizeof(S));
    } else if constexpr (kNarrow<S>) {
      narrow(hn_row(i), current_rows_[i], H_);
    }
  }

  // The hn of a row without a step is its hx.
  void pass_hx_on() const {
    for (int64_t i = block_.present(); i < block_.rows; ++i) {
      if (task_.hx) {
        const void* hx = task_.leak == Leak::kNone ? task_.hx : task_.leaky_hx;
        std::memcpy(hn_row(i), hx_row(hx, i), H_ * sizeof(S));
      } else {
        std::memset(hn_row(i), 0, H_ * sizeof(S));
      }
    }
  }

  const ForwardTask& task_;
  const Plan& plan_;
  const Block block_;
  const int64_t H_, I_;
  const Layout layout_;
  const bool fused_;
  const int64_t chunk_;  // steps whose input projections are made at once

  C *inputs_, *igates_, *zeros_;
  C* states_[2];  // of 16 bits in float: of even and of odd steps
  Product<C> projection_, step_;
  // Of a step: what it reads and writes. Of a chunk of steps: the input, and where its projections
  // go (chunk_rows_) and are read again (gate_rows_).
  const void *hx_rows_[kBlockRows], *x_rows_[kBlockRows], *h_rows_[kBlockRows];
  const C* gate_rows_[kBlockRows];
  C *chunk_rows_[kBlockRows], *out_rows_[kBlockRows];
  const void *ahead_out_[kBlockRows], *ahead_in_[kBlockRows];
  C* start_rows_[kBlockRows];  // with gates from outside
  // Of a leaky layer.
  C *rounded_, *currents_, *kept_;
  const C *leaky_hx_[kBlockRows], *carried_rows_[kBlockRows];
  C *current_rows_[kBlockRows], *kept_rows_[kBlockRows];
};

}  // namespace
}  // namespace fastrnn::cpu
