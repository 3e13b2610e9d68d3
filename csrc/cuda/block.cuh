// The recurrence of a group of rows in one block, for any way to hold w_hh and to multiply by it.
//
// A Group is that way: each thread owns kElements elements of the group's state, [kRows, kHidden].
//   Storage                  the type of h in memory
//   load(w, H, transposed)   takes w_hh [H, H], or its transpose, into registers; zeros beyond H
//   row(e), unit(e)          of an element, or row -1: none
//   product(state, c)        c[e] = sum over k of w[unit(e), k] * state[row(e), k]
//   put(state, e, x)         writes an element of the state in shared memory, of kStateBytes
//
// Tile plan: a block has kRows rows of one direction for all steps, and ends with the longest. The
//   weights stay in registers; the state is in shared memory, twice; what a step reads from global
//   memory is asked for kAhead steps before.
// Sync plan: one barrier a step. It stands between the writes of a state and its reads in the next
//   step, and between these reads and the writes of the step after that, which go to the same copy.
// Limits: hidden_size at most kHidden; fewer than 2^31 steps and rows. Any strides. Launchers
// check. Why: no exchange between blocks, and no weight read twice; see docs/benchmarks.md.
#pragma once

#include "cuda/math.cuh"

namespace fastrnn::cuda {

// The rows of a block, and the elements of this thread.
template <typename Group>
struct Owned {
  const Rows& rows;
  int b[Group::kElements];       // of the batch
  int length[Group::kElements];  // 0: not there
  bool there[Group::kElements];
  int longest = 0;

  FASTRNN_DEVICE Owned(const Rows& rows, const Group& group, int64_t hidden_size) : rows(rows) {
    const int64_t first = int64_t{blockIdx.x} * Group::kRows;
    for (int r = 0; r < Group::kRows; ++r) {
      if (first + r >= rows.batch) break;
      const int length = static_cast<int>(row_length(rows, row_at(rows, first + r)));
      longest = length > longest ? length : longest;
    }
#pragma unroll
    for (int e = 0; e < Group::kElements; ++e) {
      const int row = group.row(e);
      there[e] = row >= 0 && first + row < rows.batch && group.unit(e) < hidden_size;
      b[e] = there[e] ? static_cast<int>(row_at(rows, first + row)) : 0;
      length[e] = there[e] ? static_cast<int>(row_length(rows, b[e])) : 0;
    }
  }
  FASTRNN_DEVICE bool at(int e, int t) const { return t >= 0 && t < length[e]; }
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
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes]
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, false);
  const Owned<Group> own(r.rows, group, H);
  const int steps = own.longest;
  const auto time = [&](int i) { return d.reverse ? steps - 1 - i : i; };

  float bias[kElements], hx[kElements], h[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int unit = group.unit(e);
    bias[e] = hx[e] = 0;
    if (own.there[e]) {
      bias[e] = load_or_zero<float, S>(d.b_ih, unit) + load_or_zero<float, S>(d.b_hh, unit);
      hx[e] = load_or_zero<float, S>(d.hx, int64_t{own.b[e]} * d.hx_row_stride + unit);
    }
    h[e] = hx[e];
    if (group.row(e) >= 0) group.put(states, e, hx[e]);
  }

  S igates[kAhead][kElements];
  bool cut[kAhead][kElements];  // whether h_prev of this step is hx again
  const auto ask = [&](int u, int i) {
    const int t = time(i), before = d.reverse ? t + 1 : t - 1;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      cut[u][e] = false;
      if (!own.at(e, t)) continue;
      igates[u][e] = static_cast<const S*>(
          d.igates.data)[place(r.rows, d.igates, t, own.b[e]) + group.unit(e)];
      cut[u][e] = own.at(e, before) && is_cut(r.rows, t, before, own.b[e]);
    }
  };
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  block_sync();  // the first state is there

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
        if (own.at(e, t)) {
          S value;
          narrow(&value, activate(c[e] + (widen(igates[u][e]) + bias[e]), r.relu));
          h[e] = widen(value);
          const int b = own.b[e], unit = group.unit(e);
          static_cast<S*>(d.output.data)[place(r.rows, d.output, t, b) + unit] = value;
          if (d.copy.data) static_cast<S*>(d.copy.data)[place(r.rows, d.copy, t, b) + unit] = value;
        }
        if (group.row(e) >= 0) group.put(next, e, cut[(u + 1) % kAhead][e] ? hx[e] : h[e]);
      }
      ask(u, i + kAhead);
      block_sync();  // the next state is there, and this one has been read
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.there[e]) continue;
    narrow(static_cast<S*>(d.hn) + int64_t{own.b[e]} * H + group.unit(e), h[e]);
    put_zeros<S>(r.rows, d.output, own.b[e], group.unit(e), own.length[e]);
    put_zeros<S>(r.rows, d.copy, own.b[e], group.unit(e), own.length[e]);
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
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes]
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, true);
  const Owned<Group> own(r.rows, group, H);
  const int steps = own.longest + (d.grad_hx ? 1 : 0);
  const auto time = [&](int i) { return d.reverse ? i : own.longest - 1 - i; };

  float grad_hn[kElements], grad_hx[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    grad_hn[e] = 0;
    if (own.there[e])
      grad_hn[e] = load_or_zero<float, S>(d.grad_hn, int64_t{own.b[e]} * H + group.unit(e));
    grad_hx[e] = own.length[e] == 0 ? grad_hn[e] : 0.0f;
    if (group.row(e) >= 0) group.put(states, e, 0.0f);
  }

  S output[kAhead][kElements], grad_output[kAhead][kElements];
  bool cut[kAhead][kElements];  // whether a sequence begins between this step and the one walked
                                // before
  const auto ask = [&](int u, int i) {
    const int t = time(i), after = d.reverse ? t - 1 : t + 1;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      cut[u][e] = false;
      narrow(&grad_output[u][e], 0.0f);
      if (!own.at(e, t)) continue;
      const int b = own.b[e], unit = group.unit(e);
      output[u][e] = static_cast<const S*>(d.output.data)[place(r.rows, d.output, t, b) + unit];
      if (d.grad_output.data)
        grad_output[u][e] =
            static_cast<const S*>(d.grad_output.data)[place(r.rows, d.grad_output, t, b) + unit];
      cut[u][e] = own.at(e, after) && is_cut(r.rows, t, after, b);
    }
  };
#pragma unroll
  for (int u = 0; u < kAhead; ++u) ask(u, u);
  block_sync();  // the first state is there

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
        const bool here = own.at(e, t), came = own.at(e, after);
        float grad = came ? c[e] : here ? grad_hn[e] : 0.0f;
        if (came && (!here || cut[u][e])) {
          grad_hx[e] += c[e];
          grad = 0;
        }
        if (here) {
          S value;
          narrow(&value, (grad + widen(grad_output[u][e])) * slope(widen(output[u][e]), r.relu));
          grad = widen(value);
          static_cast<S*>(d.grad_pre.data)[place(r.rows, d.grad_pre, t, own.b[e]) + group.unit(e)] =
              value;
        }
        if (group.row(e) >= 0) group.put(next, e, grad);
      }
      ask(u, i + kAhead);
      block_sync();  // the next state is there, and this one has been read
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (!own.there[e]) continue;
    if (d.grad_hx)
      narrow(static_cast<S*>(d.grad_hx) + int64_t{own.b[e]} * H + group.unit(e), grad_hx[e]);
    put_zeros<S>(r.rows, d.grad_pre, own.b[e], group.unit(e), own.length[e]);
  }
}

// One launch for all rows and directions.
template <typename Group, int kAhead, typename Direction>
cudaError_t launch_blocks(const Recurrence<Direction>& r, cudaStream_t stream) {
  const int64_t groups = (r.rows.batch + Group::kRows - 1) / Group::kRows;
  if (groups == 0 || r.rows.batch > INT32_MAX || r.rows.seq_len > INT32_MAX - 2 * kAhead ||
      r.hidden_size > Group::kHidden)
    return cudaErrorInvalidValue;
  const Launch how{dim3(static_cast<unsigned>(groups), r.num_directions), Group::kThreads,
                   2 * Group::kStateBytes, stream};
  if constexpr (std::is_same_v<Direction, ForwardDirection>) {
    return launch(forward_block_kernel<Group, kAhead>, how, r);
  } else {
    return launch(backward_block_kernel<Group, kAhead>, how, r);
  }
}

}  // namespace fastrnn::cuda
