// The recurrence of a group of rows in one block, or in the kBlocks blocks of a cluster, for any
// way to hold w_hh and to multiply by it.
//
// A Group is that way: each thread owns kElements elements of the group's state, [kRows, kHidden].
// Every block has two copies of all of the state.
//   Storage                  the type of h in memory
//   load(w, H, transposed)   takes w_hh [H, H], or its transpose, into registers; zeros beyond H
//   row(s), slot(e), unit(e) a thread's elements lie in kSlots rows; row -1: none
//   offset(e)               unit(e) - unit(0), a constant
//   product(state, c)        c[e] = sum over k of w[unit(e), k] * state[row(e), k]
//   put(state, e, x)         writes an element of the state in shared memory, of kStateBytes
//   send(state, copy)        after all of the thread's puts, before anything that need not be soon
//   receive(copy)            waits for the whole state in this copy
//
// Tile plan: a block has kRows rows of one direction for all steps, and ends with the longest. The
//   weights stay in registers; the state is in shared memory, twice; what a step reads from global
//   memory is asked for kAhead steps before.
// Sync plan: one receive a step, in one block a barrier. It stands between the writes of a state
//   and its reads in the next step, and between these reads and the writes of the step after that,
//   which go to the same copy. For clusters see cluster.cuh.
// Limits: hidden_size at most kHidden; fewer than 2^31 steps and rows. Any strides. Launchers
// check. Why: no exchange between blocks, and no weight read twice; see docs/benchmarks.md.
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
  uint32_t b[Group::kSlots];  // of the batch
  int length[Group::kSlots];  // 0: not there
  int first[Group::kSlots];   // step of the walk that the row has
  bool there[Group::kSlots];

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
      there[s] = row >= 0 && start + row < rows.batch;
      b[s] = there[s] ? static_cast<uint32_t>(row_at(rows, start + row)) : 0;
      length[s] = there[s] ? static_cast<int>(row_length(rows, b[s])) : 0;
      first[s] = down ? longest - length[s] : 0;
    }
  }
  FASTRNN_DEVICE int time(int i) const { return down ? longest - 1 - i : i; }
  // Whether the row has step i of the walk.
  FASTRNN_DEVICE bool at(int s, int i) const {
    return static_cast<unsigned>(i - first[s]) < static_cast<unsigned>(length[s]);
  }
  // The same of an element, of which the tensor may have none.
  FASTRNN_DEVICE bool at(const Group& group, int e, int i) const {
    return at(Group::slot(e), i) && group.unit(e) < hidden_size;
  }
  // Whether the element is one of the tensor.
  FASTRNN_DEVICE bool has(const Group& group, int e) const {
    return there[Group::slot(e)] && group.unit(e) < hidden_size;
  }
  // Where rows have marks: of each slot, whether a sequence begins between steps i - 1 and i of the
  // walk. As it is in memory, so that nothing waits for it here.
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

// Where the elements of a step of the walk lie in some sequence tensors.
template <typename Group, int kTensors>
struct Walk {
  using S = typename Group::Storage;
  static constexpr int kBytes = sizeof(S);
  const Owned<Group>& own;
  const Sequence* const* tensors;
  S* at[kTensors][Group::kSlots];  // of a slot's first unit
  int64_t step[kTensors];          // bytes from this step to the next
  // Of packed data: the rows before this step and before the next, modulo 2^32, as what is between
  // them is less than 2^31. Loaded a step before they are used.
  uint32_t start, coming;

  FASTRNN_DEVICE Walk(const Group& group, const Owned<Group>& own,
                      const Sequence* const (&tensors)[kTensors])
      : own(own), tensors(tensors) {
#pragma unroll
    for (int n = 0; n < kTensors; ++n) {
      step[n] = (own.down ? -tensors[n]->step_stride : tensors[n]->step_stride) * kBytes;
#pragma unroll
      for (int s = 0; s < Group::kSlots; ++s) {
        at[n][s] = static_cast<S*>(tensors[n]->data) + group.unit(0);
        if (own.length[s] > 0) at[n][s] += place(own.rows, *tensors[n], own.time(0), own.b[s]);
      }
    }
    start = start_of(0);
    coming = start_of(1);
  }
  FASTRNN_DEVICE uint32_t start_of(int i) const {
    if (!own.rows.start || i >= own.longest) return 0;
    return static_cast<uint32_t>(own.rows.start[own.time(i)]);
  }
  // From step i to the next.
  FASTRNN_DEVICE void next(int i) {
    if (own.rows.start) {
#pragma unroll
      for (int n = 0; n < kTensors; ++n)
        step[n] = static_cast<int>(coming - start) * tensors[n]->row_stride * kBytes;
      start = coming;
      coming = start_of(i + 2);
    }
#pragma unroll
    for (int n = 0; n < kTensors; ++n)
#pragma unroll
      for (int s = 0; s < Group::kSlots; ++s) at[n][s] = further(at[n][s], step[n]);
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

  float bias[kElements];
  S hx[kElements], h[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int unit = group.unit(e);
    bias[e] = 0;
    if (unit < H)
      bias[e] = load_or_zero<float, S>(d.b_ih, unit) + load_or_zero<float, S>(d.b_hh, unit);
    narrow(&hx[e], 0.0f);
    if (d.hx && own.has(group, e))
      hx[e] = static_cast<const S*>(d.hx)[own.b[Group::slot(e)] * d.hx_row_stride + unit];
    h[e] = hx[e];
    group.put(states, e, h[e]);
  }

  const Sequence *in[] = {&d.igates}, *out[] = {&d.output, &d.copy};
  Walk<Group, 1> asked(group, own, in);
  Walk<Group, 2> done(group, own, out);
  S igates[kAhead][kElements];
  unsigned char cut[2][kSlots];  // whether h_prev is hx again; of the next steps of each parity
  const auto ask = [&](int u, int i) {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (own.at(group, e, i)) igates[u][e] = asked.at[0][Group::slot(e)][Group::offset(e)];
    asked.next(i);
  };
  group.send(states, 0);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  own.load_marks(1, cut[1]);
  own.load_marks(2, cut[0]);
  group.receive(0);

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
      if (r.relu) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) c[e] = activate(c[e], true);
      } else {
#pragma unroll
        for (int e = 0; e < kElements; ++e) c[e] = activate(c[e], false);
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        S value;
        narrow(&value, c[e]);
        if (own.at(group, e, i)) h[e] = value;
      }
      if (r.rows.reset) {
#pragma unroll
        for (int e = 0; e < kElements; ++e)
          group.put(next, e, cut[(u + 1) % 2][Group::slot(e)] ? hx[e] : h[e]);
      } else {
#pragma unroll
        for (int e = 0; e < kElements; ++e) group.put(next, e, h[e]);
      }
      group.send(next, (u + 1) % 2);
      const auto store = [&](S* const(&to)[kSlots]) {
#pragma unroll
        for (int e = 0; e < kElements; ++e)
          if (own.at(group, e, i)) to[Group::slot(e)][Group::offset(e)] = h[e];
      };
      store(done.at[0]);
      if (d.copy.data) store(done.at[1]);
      done.next(i);
      ask(u, i + kAhead);
      own.load_marks(i + 3, cut[(u + 1) % 2]);
      group.receive((u + 1) % 2);
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.has(group, e)) continue;
    const int s = Group::slot(e), unit = group.unit(e);
    static_cast<S*>(d.hn)[own.b[s] * H + unit] = h[e];
    put_zeros<S>(r.rows, d.output, own.b[s], unit, own.length[s]);
    put_zeros<S>(r.rows, d.copy, own.b[s], unit, own.length[s]);
  }
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

  const Sequence *in[] = {&d.output, &d.grad_output}, *out[] = {&d.grad_pre};
  Walk<Group, 2> asked(group, own, in);
  Walk<Group, 1> done(group, own, out);
  S output[kAhead][kElements], grad_output[kAhead][kElements];
  // Whether a sequence begins between a step and the one walked before; of the next of each parity.
  unsigned char cut[2][kSlots];
  const auto ask = [&](int u, int i) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int s = Group::slot(e), unit = Group::offset(e);
      const bool here = own.at(group, e, i);
      grad_output[u][e] = zero;
      if (here) output[u][e] = asked.at[0][s][unit];
      if (here && d.grad_output.data) grad_output[u][e] = asked.at[1][s][unit];
    }
    asked.next(i);
  };
  group.send(states, 0);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  own.load_marks(0, cut[0]);
  own.load_marks(1, cut[1]);
  group.receive(0);

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
        const bool ends = came && (!here || (r.rows.reset && cut[u % 2][Group::slot(e)]));
        const float grad_h = came ? c[e] : grad_hx[e];
        const float to_h = ends ? 0.0f : grad_h, to_hx = ends ? grad_hx[e] + grad_h : grad_hx[e];
        grad_hx[e] = here && !came ? 0.0f : to_hx;
        narrow(&value[e], (to_h + widen(grad_output[u][e])) * slope(widen(output[u][e]), r.relu));
        if (!here) value[e] = zero;
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) group.put(next, e, value[e]);
      group.send(next, (u + 1) % 2);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (own.at(group, e, i)) done.at[0][Group::slot(e)][Group::offset(e)] = value[e];
      done.next(i);
      ask(u, i + kAhead);
      own.load_marks(i + 2, cut[u % 2]);
      group.receive((u + 1) % 2);
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.has(group, e)) continue;
    const int s = Group::slot(e), unit = group.unit(e);
    if (d.grad_hx) narrow(static_cast<S*>(d.grad_hx) + own.b[s] * H + unit, grad_hx[e]);
    put_zeros<S>(r.rows, d.grad_pre, own.b[s], unit, own.length[s]);
  }
}

// One launch for all rows and directions.
template <typename Group, int kAhead, typename Direction>
cudaError_t launch_blocks(const Recurrence<Direction>& r, cudaStream_t stream) {
  const int64_t groups = (r.rows.batch + Group::kRows - 1) / Group::kRows;
  if (groups == 0 || r.rows.batch > INT32_MAX / Group::kBlocks ||
      r.rows.seq_len > INT32_MAX - 2 * kAhead || r.hidden_size > Group::kHidden)
    return cudaErrorInvalidValue;
  const Launch how{dim3(static_cast<unsigned>(groups * Group::kBlocks), r.num_directions),
                   Group::kThreads, Group::kSharedBytes, stream, Group::kBlocks};
  if constexpr (std::is_same_v<Direction, ForwardDirection>) {
    return launch(forward_block_kernel<Group, kAhead>, how, r);
  } else {
    return launch(backward_block_kernel<Group, kAhead>, how, r);
  }
}

}  // namespace fastrnn::cuda
