// The recurrence of a group of rows in one block, or in the kBlocks blocks of a cluster, for any
// way to hold w_hh and to multiply by it, and any way to walk the steps.
//
// A Group is the first: each thread owns kElements elements of the group's state, [kRows, kHidden].
// Every block has two copies of all of the state.
//   Storage                  the type of h in memory
//   load(w, H, transposed)   takes w_hh [H, H], or its transpose, into registers; zeros beyond H
//   row(s), slot(e), unit(e) a thread's elements lie in kSlots rows; row -1: none
//   offset(e)                unit(e) - unit(0), a constant
//   product(state, c, meanwhile)  c[e] = sum over k of w[unit(e), k] * state[row(e), k]; calls
//                            meanwhile() once, after it has asked for the first of the state
//   put(state, e, x)         writes an element of the state in shared memory, of kStateBytes
//   send(state, copy)        after all of the thread's puts, before work that can wait
//   receive(copy, gave_up)   waits for the whole state in this copy; if the wait gives up, what
//                            this thread computes from it becomes NaN
//   leave(), left()          after the last step, and at the end
//
// A Walk is the second (any_rows.cuh, whole_rows.cuh): which rows have which steps, and how
// elements of the tensors are loaded and stored.
//
// Tile plan: a block has kRows rows of one direction for all steps, and ends with the longest. The
//   weights stay in registers; the state is in shared memory, twice.
// Sync plan: one receive per step; in one block, a barrier. It stands between the writes of a state
//   and its reads in the next step, and between these reads and the writes of the step after that,
//   which go to the same copy. For clusters see cluster.cuh.
// Limits: hidden_size at most kHidden; fewer than 2^31 steps and rows; igates and copy have the
// strides of output, and so has grad_pre. Launchers check. Why: no exchange between blocks, and no
// weight read twice; see docs/benchmarks.md.
#pragma once

#include "cuda/math.cuh"

namespace fastrnn::cuda {

template <typename Group, typename Walk>
FASTRNN_KERNEL(Group::kThreads, 1)
void forward_block_kernel(const __grid_constant__ ForwardRecurrence r) {
  using S = typename Group::Storage;
  constexpr int kElements = Group::kElements;
  const ForwardDirection& d = r.direction[blockIdx.y];
  const int64_t H = r.hidden_size;
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes], and the group's own
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, false);
  Walk walk(group, r, d);
  const int steps = walk.steps();
  const bool relu = unknown(r.nonlinearity == Nonlinearity::kRelu) != 0;

  S h[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    narrow(&h[e], 0.0f);
    if (d.hx && walk.has(e))
      h[e] = static_cast<const S*>(d.hx)[walk.row(e) * d.hx_row_stride + group.unit(e)];
    group.put(states, e, h[e]);
  }
  group.send(states, 0);
  walk.begin();
  group.receive(0, r.gave_up);

  for (int first = 0; first < steps; first += Walk::kUnroll) {
#pragma unroll
    for (int u = 0; u < Walk::kUnroll; ++u) {
      const int i = first + u;
      if (i >= steps) break;
      const unsigned char* state = states + u % 2 * Group::kStateBytes;
      unsigned char* next = states + (u + 1) % 2 * Group::kStateBytes;
      float c[kElements], start[kElements];
      group.product(state, c, [&] { walk.start(u, i, state, h, start); });
      // All at once, so that no element waits for another; then only what the row has.
#pragma unroll
      for (int e = 0; e < kElements; ++e) c[e] += start[e];
      if (relu) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) c[e] = activate<S>(c[e], Nonlinearity::kRelu);
      } else {
#pragma unroll
        for (int e = 0; e < kElements; ++e) c[e] = activate<S>(c[e], Nonlinearity::kTanh);
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        S value;
        narrow(&value, c[e]);
        if (walk.here(e, i)) h[e] = value;
        group.put(next, e, walk.next(e, h[e]));
      }
      group.send(next, (u + 1) % 2);
      walk.after(u, i, h);
      group.receive((u + 1) % 2, r.gave_up);
    }
  }
  group.leave();
  walk.end(states + steps % 2 * Group::kStateBytes, h);
#pragma unroll
  for (int e = 0; e < kElements; ++e)
    if (walk.has(e)) static_cast<S*>(d.hn)[walk.row(e) * H + group.unit(e)] = h[e];
  group.left();
}

// Here the state is grad_pre of the step walked before, and its product with w_hh the gradient that
// comes to h. After a row's last step it goes to hx.
template <typename Group, typename Walk>
FASTRNN_KERNEL(Group::kThreads, 1)
void backward_block_kernel(const __grid_constant__ BackwardRecurrence r) {
  using S = typename Group::Storage;
  constexpr int kElements = Group::kElements;
  const BackwardDirection& d = r.direction[blockIdx.y];
  const int64_t H = r.hidden_size;
  unsigned char* states = shared_memory<unsigned char>();  // [2][kStateBytes], and the group's own
  Group group;
  group.load(static_cast<const S*>(d.w_hh), H, true);
  Walk walk(group, r, d);
  const int steps = walk.steps();

  S zero, value[kElements];  // grad_pre
  narrow(&zero, 0.0f);
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    value[e] = zero;
    group.put(states, e, zero);
  }
  group.send(states, 0);
  walk.begin();
  group.receive(0, r.gave_up);

  for (int first = 0; first < steps; first += Walk::kUnroll) {
#pragma unroll
    for (int u = 0; u < Walk::kUnroll; ++u) {
      const int i = first + u;
      if (i >= steps) break;
      const unsigned char* state = states + u % 2 * Group::kStateBytes;
      unsigned char* next = states + (u + 1) % 2 * Group::kStateBytes;
      float c[kElements], start[kElements], slopes[kElements];
      group.product(state, c, [&] { walk.start(u, i, state, value, start, slopes); });
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        narrow(&value[e], (walk.take(e, i, c[e]) + start[e]) * slopes[e]);
        if (!walk.here(e, i)) value[e] = zero;
        group.put(next, e, value[e]);
      }
      group.send(next, (u + 1) % 2);
      walk.after(u, i, value);
      group.receive((u + 1) % 2, r.gave_up);
    }
  }
  group.leave();
  walk.end(states + steps % 2 * Group::kStateBytes, value);
  if (d.grad_hx) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (walk.has(e))
        narrow(static_cast<S*>(d.grad_hx) + walk.row(e) * H + group.unit(e), walk.grad_hx(e));
    }
  }
  group.left();
}

}  // namespace fastrnn::cuda
