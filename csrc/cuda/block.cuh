// The recurrence of a group of rows in one block, or in the kBlocks blocks of a cluster, for any
// way to hold w_hh and to multiply by it.
//
// A Group is that way: each thread owns kElements elements of the group's state, [kRows, kHidden].
// Every block has two copies of all of the state.
//   Storage                  the type of h in memory
//   load(w, H, transposed)   takes w_hh [H, H], or its transpose, into registers; zeros beyond H
//   row(s), slot(e), unit(e) a thread's elements lie in kSlots rows; row -1: none
//   offset(e)                unit(e) - unit(0), a constant
//   product(state, c)        c[e] = sum over k of w[unit(e), k] * state[row(e), k]
//   put(state, e, x)         writes an element of the state in shared memory, of kStateBytes
//   send(state, copy)        after all of the thread's puts, before anything that need not be soon
//   receive(copy, gave_up)   waits for the whole state in this copy; in vain, and what this thread
//                            makes of it becomes NaN
//   leave(), left()          after the last step, and at the end
//
// Tile plan: a block has kRows rows of one direction for all steps, and ends with the longest. The
//   weights stay in registers; the state is in shared memory, twice; what a step reads of the
//   tensors is asked for kAhead steps before, the marks of reset and the starts of packed steps one
//   step before they are used. Pointers run along with the steps.
// Sync plan: one receive a step, in one block a barrier. It stands between the writes of a state
//   and its reads in the next step, and between these reads and the writes of the step after that,
//   which go to the same copy. For clusters see cluster.cuh.
// Limits: hidden_size at most kHidden; fewer than 2^31 steps and rows; igates and copy have the
// strides of output, and so has grad_pre. Launchers check. Why: no exchange between blocks, and no
// weight read twice; see docs/benchmarks.md.
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
    for (int r = 0; r < Group::kRows; ++r) {
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
  // The same of an element, of which the tensor may have none.
  FASTRNN_DEVICE bool at(const Group& group, int e, int i) const {
    return at(Group::slot(e), i) && group.unit(e) < hidden_size;
  }
  // Whether the element is one of the tensor.
  FASTRNN_DEVICE bool has(const Group& group, int e) const {
    return b[Group::slot(e)] != kNone && group.unit(e) < hidden_size;
  }
  // Of packed data: the rows before step i, modulo 2^32, as a step has fewer than 2^31.
  FASTRNN_DEVICE uint32_t start(int i) const {
    return i < longest ? static_cast<uint32_t>(rows.start[time(i)]) : 0;
  }
  // Where there is a reset: of each slot, whether a sequence begins between steps i - 1 and i of
  // the walk, as the byte in memory, so that nothing waits for it before it is tested.
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
FASTRNN_KERNEL(Group::kThreads, 1)
void forward_block_kernel(const __grid_constant__ ForwardRecurrence r) {
  static_assert(kAhead % 2 == 0, "the copy of the state is that of the step's parity");
  using S = typename Group::Storage;
  constexpr int kElements = Group::kElements, kSlots = Group::kSlots;
  const ForwardDirection& d = r.direction[blockIdx.y];
  const int64_t H = r.hidden_size;
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes], and the group's own
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, false);
  const Owned<Group> own(r.rows, group, H, d.reverse);
  const int steps = own.longest;

  S zero;
  narrow(&zero, 0.0f);
  float bias[kElements];
  S h[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int unit = group.unit(e);
    bias[e] = 0;
    if (unit < H)
      bias[e] = load_or_zero<float, S>(d.b_ih, unit) + load_or_zero<float, S>(d.b_hh, unit);
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    h[e] = zero;
    if (d.hx && own.has(group, e))
      h[e] = static_cast<const S*>(d.hx)[own.b[Group::slot(e)] * d.hx_row_stride + group.unit(e)];
    group.put(states, e, h[e]);
  }

  Place<Group> asked(group, own, d.igates.data, d.output),
      done(group, own, d.output.data, d.output);
  S igates[kAhead][kElements];
  unsigned char cut[kSlots];  // whether h_prev of the next step is zero
  // Of the step after those that were asked for.
  uint32_t coming = r.rows.start ? own.start(1) : 0;
  const auto ask = [&](int u, int i) {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (own.at(group, e, i)) igates[u][e] = asked.at[Group::slot(e)][Group::offset(e)];
    if (r.rows.start) {
      asked.set_rows_to_next(coming - own.start(i));
      coming = own.start(i + 2);
    }
    asked.next();
  };
  group.send(states, 0);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  own.load_marks(1, cut);
  group.receive(0, r.gave_up);

  for (int first = 0; first < steps; first += kAhead) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int i = first + u;
      if (i >= steps) break;
      unsigned char* next = states + (u + 1) % 2 * Group::kStateBytes;
      float c[kElements];
      group.product(states + u % 2 * Group::kStateBytes, c);
      // All at once, so that no element waits for another; then only what the row has.
#pragma unroll
      for (int e = 0; e < kElements; ++e) c[e] += widen(igates[u][e]) + bias[e];
      if (r.nonlinearity == Nonlinearity::kRelu) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) c[e] = activate(c[e], Nonlinearity::kRelu);
      } else {
#pragma unroll
        for (int e = 0; e < kElements; ++e) c[e] = activate(c[e], Nonlinearity::kTanh);
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        S value;
        narrow(&value, c[e]);
        if (own.at(group, e, i)) h[e] = value;
      }
      if (r.rows.reset) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) group.put(next, e, cut[Group::slot(e)] ? zero : h[e]);
      } else {
#pragma unroll
        for (int e = 0; e < kElements; ++e) group.put(next, e, h[e]);
      }
      group.send(next, (u + 1) % 2);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (own.at(group, e, i)) done.at[Group::slot(e)][Group::offset(e)] = h[e];
      if (d.copy.data) {
        const int64_t to_copy = static_cast<char*>(d.copy.data) - static_cast<char*>(d.output.data);
#pragma unroll
        for (int e = 0; e < kElements; ++e)
          if (own.at(group, e, i))
            further(done.at[Group::slot(e)], to_copy)[Group::offset(e)] = h[e];
      }
      if (r.rows.start) done.set_rows_to_next(own.start(i + 1) - own.start(i));
      done.next();
      ask(u, i + kAhead);
      own.load_marks(i + 2, cut);
      group.receive((u + 1) % 2, r.gave_up);
    }
  }
  group.leave();
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.has(group, e)) continue;
    const int s = Group::slot(e), unit = group.unit(e);
    const int64_t b = unknown(own.b[s]);
    static_cast<S*>(d.hn)[b * H + unit] = h[e];
    put_zeros<S>(r.rows, d.output, b, unit, own.length[s]);
    put_zeros<S>(r.rows, d.copy, b, unit, own.length[s]);
  }
  group.left();
}

// Here the state is grad_pre of the step walked before, and its product with w_hh the gradient that
// comes to h. After a row's last step it goes to hx.
template <typename Group, int kAhead>
FASTRNN_KERNEL(Group::kThreads, 1)
void backward_block_kernel(const __grid_constant__ BackwardRecurrence r) {
  static_assert(kAhead % 2 == 0, "the copy of the state is that of the step's parity");
  using S = typename Group::Storage;
  constexpr int kElements = Group::kElements, kSlots = Group::kSlots;
  const BackwardDirection& d = r.direction[blockIdx.y];
  const int64_t H = r.hidden_size;
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes], and the group's own
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, true);
  const Owned<Group> own(r.rows, group, H, !d.reverse);
  const int steps = own.longest + (d.grad_hx ? 1 : 0);

  S zero;
  narrow(&zero, 0.0f);
  float grad_hx[kElements];  // grad_hn until the row's first step
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int64_t at = own.b[Group::slot(e)] * H + group.unit(e);
    grad_hx[e] = own.has(group, e) ? load_or_zero<float, S>(d.grad_hn, at) : 0.0f;
    group.put(states, e, zero);
  }

  Place<Group> asked(group, own, d.output.data, d.output),
      asked_grad(group, own, d.grad_output.data, d.grad_output),
      done(group, own, d.grad_pre.data, d.output);
  S output[kAhead][kElements], grad_output[kAhead][kElements];
#pragma unroll
  for (int n = 0; n < kAhead * kElements; ++n) grad_output[n / kElements][n % kElements] = zero;
  unsigned char cut[kSlots];  // whether a sequence begins between this step and the one before
  // Of the step after those that were asked for.
  uint32_t coming = r.rows.start ? own.start(1) : 0;
  const auto ask = [&](int u, int i) {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (own.at(group, e, i)) output[u][e] = asked.at[Group::slot(e)][Group::offset(e)];
    if (d.grad_output.data) {
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (own.at(group, e, i))
          grad_output[u][e] = asked_grad.at[Group::slot(e)][Group::offset(e)];
    }
    if (r.rows.start) {
      const uint32_t rows = coming - own.start(i);
      coming = own.start(i + 2);
      asked.set_rows_to_next(rows);
      asked_grad.set_rows_to_next(rows);
    }
    asked.next();
    asked_grad.next();
  };
  group.send(states, 0);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  own.load_marks(0, cut);
  group.receive(0, r.gave_up);

  for (int first = 0; first < steps; first += kAhead) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int i = first + u;
      if (i >= steps) break;
      unsigned char* next = states + (u + 1) % 2 * Group::kStateBytes;
      float c[kElements];
      group.product(states + u % 2 * Group::kStateBytes, c);
      S value[kElements];  // grad_pre
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const bool here = own.at(group, e, i), came = own.at(group, e, i - 1);
        const bool ends = came && (!here || (r.rows.reset && cut[Group::slot(e)]));
        const float grad_h = came ? c[e] : grad_hx[e];
        const float to_h = ends ? 0.0f : grad_h, to_hx = ends ? grad_h : grad_hx[e];
        grad_hx[e] = here ? 0.0f : to_hx;
        narrow(&value[e],
               (to_h + widen(grad_output[u][e])) * slope(widen(output[u][e]), r.nonlinearity));
        if (!here) value[e] = zero;
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) group.put(next, e, value[e]);
      group.send(next, (u + 1) % 2);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (own.at(group, e, i)) done.at[Group::slot(e)][Group::offset(e)] = value[e];
      if (r.rows.start) done.set_rows_to_next(own.start(i + 1) - own.start(i));
      done.next();
      ask(u, i + kAhead);
      own.load_marks(i + 1, cut);
      group.receive((u + 1) % 2, r.gave_up);
    }
  }
  group.leave();
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.has(group, e)) continue;
    const int s = Group::slot(e), unit = group.unit(e);
    const int64_t b = unknown(own.b[s]);
    if (d.grad_hx) narrow(static_cast<S*>(d.grad_hx) + b * H + unit, grad_hx[e]);
    put_zeros<S>(r.rows, d.grad_pre, b, unit, own.length[s]);
  }
  group.left();
}

}  // namespace fastrnn::cuda
