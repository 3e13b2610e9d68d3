// The recurrence of a group of rows in one block, or in the kBlocks blocks of a cluster, for any
// way to hold w_hh and to multiply by it.
//
// A Group is that way: each thread owns kElements elements of the group's state, [kRows, kHidden].
// Every block has two copies of all of the state.
//   Storage                  the type of h in memory
//   load(w, H, transposed)   takes w_hh [H, H], or its transpose, into registers; zeros beyond H
//   row(s), slot(e), unit(e) a thread's elements lie in kSlots rows; row -1: none
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

// The rows of a block, and the elements of this thread.
template <typename Group>
struct Owned {
  const Rows& rows;
  int hidden_size;
  int b[Group::kSlots];       // of the batch
  int length[Group::kSlots];  // 0: not there
  bool there[Group::kSlots];
  int longest = 0;

  FASTRNN_DEVICE Owned(const Rows& rows, const Group& group, int64_t hidden_size)
      : rows(rows), hidden_size(static_cast<int>(hidden_size)) {
    const int64_t first = int64_t{blockIdx.x / Group::kBlocks} * Group::kRows;
    for (int r = 0; r < Group::kRows; ++r) {
      if (first + r >= rows.batch) break;
      const int length = static_cast<int>(row_length(rows, row_at(rows, first + r)));
      longest = length > longest ? length : longest;
    }
#pragma unroll
    for (int s = 0; s < Group::kSlots; ++s) {
      const int row = group.row(s);
      there[s] = row >= 0 && first + row < rows.batch;
      b[s] = there[s] ? static_cast<int>(row_at(rows, first + row)) : 0;
      length[s] = there[s] ? static_cast<int>(row_length(rows, b[s])) : 0;
    }
  }
  FASTRNN_DEVICE bool at(int s, int t) const { return t >= 0 && t < length[s]; }
  // Whether the element is one of the tensor.
  FASTRNN_DEVICE bool has(const Group& group, int e) const {
    return there[Group::slot(e)] && group.unit(e) < hidden_size;
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
  constexpr int kElements = Group::kElements;
  const ForwardDirection& d = r.direction[blockIdx.y];
  const int64_t H = r.hidden_size;
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes], and the group's own
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, false);
  const Owned<Group> own(r.rows, group, H);
  const int steps = own.longest;
  const auto time = [&](int i) { return d.reverse ? steps - 1 - i : i; };

  const auto hx = [&](int e) {
    const int64_t at = int64_t{own.b[Group::slot(e)]} * d.hx_row_stride + group.unit(e);
    return own.has(group, e) ? load_or_zero<float, S>(d.hx, at) : 0.0f;
  };

  float bias[kElements], h[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int unit = group.unit(e);
    bias[e] = 0;
    if (unit < H)
      bias[e] = load_or_zero<float, S>(d.b_ih, unit) + load_or_zero<float, S>(d.b_hh, unit);
    h[e] = hx(e);
    group.put(states, e, h[e]);
  }

  S igates[kAhead][kElements];
  bool cut[kAhead][Group::kSlots];  // whether h_prev of this step is hx again
  const auto ask = [&](int u, int i) {
    const int t = time(i), before = d.reverse ? t + 1 : t - 1;
#pragma unroll
    for (int s = 0; s < Group::kSlots; ++s)
      cut[u][s] = own.at(s, t) && own.at(s, before) && is_cut(r.rows, t, before, own.b[s]);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int s = Group::slot(e);
      if (!own.at(s, t) || group.unit(e) >= H) continue;
      const S* row = static_cast<const S*>(d.igates.data) + place(r.rows, d.igates, t, own.b[s]);
      igates[u][e] = row[group.unit(e)];
    }
  };
  group.send(states, 0);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  group.receive(0);

  for (int first = 0; first < steps; first += kAhead) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int i = first + u, t = time(i);
      if (i >= steps) break;
      unsigned char* next = states + (u + 1) % 2 * Group::kStateBytes;
      float c[kElements];
      group.product(states + u % 2 * Group::kStateBytes, c);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int s = Group::slot(e);
        if (own.at(s, t) && group.unit(e) < H) {
          S value;
          narrow(&value, activate(c[e] + (widen(igates[u][e]) + bias[e]), r.relu));
          h[e] = widen(value);
        }
        group.put(next, e, cut[(u + 1) % kAhead][s] ? hx(e) : h[e]);
      }
      group.send(next, (u + 1) % 2);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int s = Group::slot(e), b = own.b[s], unit = group.unit(e);
        if (!own.at(s, t) || unit >= H) continue;
        narrow(static_cast<S*>(d.output.data) + place(r.rows, d.output, t, b) + unit, h[e]);
        if (d.copy.data)
          narrow(static_cast<S*>(d.copy.data) + place(r.rows, d.copy, t, b) + unit, h[e]);
      }
      ask(u, i + kAhead);
      group.receive((u + 1) % 2);
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.has(group, e)) continue;
    const int s = Group::slot(e);
    narrow(static_cast<S*>(d.hn) + own.b[s] * H + group.unit(e), h[e]);
    put_zeros<S>(r.rows, d.output, own.b[s], group.unit(e), own.length[s]);
    put_zeros<S>(r.rows, d.copy, own.b[s], group.unit(e), own.length[s]);
  }
}

// Here the state is grad_pre of the step walked before, and its product with w_hh the gradient that
// comes to h. After a row's last step it goes to hx.
template <typename Group, int kAhead>
FASTRNN_KERNEL(Group::kThreads, 1)
void backward_block_kernel(const __grid_constant__ BackwardRecurrence r) {
  static_assert(kAhead % 2 == 0, "the copy of the state is that of the step's parity");
  using S = typename Group::Storage;
  constexpr int kElements = Group::kElements;
  const BackwardDirection& d = r.direction[blockIdx.y];
  const int64_t H = r.hidden_size;
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes], and the group's own
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, true);
  const Owned<Group> own(r.rows, group, H);
  const int steps = own.longest + (d.grad_hx ? 1 : 0);
  const auto time = [&](int i) { return d.reverse ? i : own.longest - 1 - i; };

  const auto grad_hn = [&](int e) {
    const int64_t at = own.b[Group::slot(e)] * H + group.unit(e);
    return own.has(group, e) ? load_or_zero<float, S>(d.grad_hn, at) : 0.0f;
  };

  float grad_hx[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    grad_hx[e] = own.length[Group::slot(e)] == 0 ? grad_hn(e) : 0.0f;
    group.put(states, e, 0.0f);
  }

  S output[kAhead][kElements], grad_output[kAhead][kElements];
  // Whether a sequence begins between this step and the one walked before.
  bool cut[kAhead][Group::kSlots];
  const auto ask = [&](int u, int i) {
    const int t = time(i), after = d.reverse ? t - 1 : t + 1;
#pragma unroll
    for (int s = 0; s < Group::kSlots; ++s)
      cut[u][s] = own.at(s, t) && own.at(s, after) && is_cut(r.rows, t, after, own.b[s]);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int s = Group::slot(e), b = own.b[s], unit = group.unit(e);
      narrow(&grad_output[u][e], 0.0f);
      if (!own.at(s, t) || unit >= H) continue;
      output[u][e] = (static_cast<const S*>(d.output.data) + place(r.rows, d.output, t, b))[unit];
      if (d.grad_output.data)
        grad_output[u][e] =
            (static_cast<const S*>(d.grad_output.data) + place(r.rows, d.grad_output, t, b))[unit];
    }
  };
  group.send(states, 0);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  group.receive(0);

  for (int first = 0; first < steps; first += kAhead) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int i = first + u, t = time(i), after = d.reverse ? t - 1 : t + 1;
      if (i >= steps) break;
      unsigned char* next = states + (u + 1) % 2 * Group::kStateBytes;
      float c[kElements];
      group.product(states + u % 2 * Group::kStateBytes, c);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int s = Group::slot(e), unit = group.unit(e);
        const bool here = own.at(s, t), came = own.at(s, after);
        float grad = came ? c[e] : here ? grad_hn(e) : 0.0f;
        if (came && (!here || cut[u][s])) {
          grad_hx[e] += c[e];
          grad = 0;
        }
        if (here && unit < H) {
          S* value = &grad_output[u][e];  // from here on grad_pre
          narrow(value, (grad + widen(*value)) * slope(widen(output[u][e]), r.relu));
          grad = widen(*value);
        }
        group.put(next, e, unit < H ? grad : 0.0f);
      }
      group.send(next, (u + 1) % 2);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int s = Group::slot(e), unit = group.unit(e);
        if (own.at(s, t) && unit < H)
          (static_cast<S*>(d.grad_pre.data) + place(r.rows, d.grad_pre, t, own.b[s]))[unit] =
              grad_output[u][e];
      }
      ask(u, i + kAhead);
      group.receive((u + 1) % 2);
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.has(group, e)) continue;
    const int s = Group::slot(e);
    if (d.grad_hx) narrow(static_cast<S*>(d.grad_hx) + own.b[s] * H + group.unit(e), grad_hx[e]);
    put_zeros<S>(r.rows, d.grad_pre, own.b[s], group.unit(e), own.length[s]);
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
