// Kernels of one step, beside cuBLAS's product; and those that prepare rows before all steps.
#include <cstdio>

#include "cuda/step.cuh"
#include "cuda/step.h"

namespace fastrnn::cuda {
namespace {

// Tile plan: a thread has one unit of one row of one direction. Sync plan: none; the step before is
// another launch. Limits: none. Why: the answer for every size and dtype; see docs/benchmarks.md.
template <typename S>
FASTRNN_KERNEL(kThreads, 1)
void forward_step_kernel(const __grid_constant__ ForwardStep step) {
  using C = Accumulate<S>;
  const ForwardRecurrence& r = step.recurrence;
  const ForwardDirection& d = r.direction[blockIdx.y];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len, i = thread_number(), b = i / H, j = i % H;
  if (b >= step.num_rows) return;
  const int64_t t = d.reverse ? T - 1 - step.step : step.step, before = d.reverse ? t + 1 : t - 1;
  const int64_t length = row_length(rows, b);
  if (t >= length) {
    if (rows.start) return;
    narrow(static_cast<S*>(d.output.data) + place(rows, d.output, t, b) + j, C(0));
    if (d.copy.data) narrow(static_cast<S*>(d.copy.data) + place(rows, d.copy, t, b) + j, C(0));
    return;
  }
  const bool again = before >= 0 && before < length && is_cut(rows, t, before, b);
  const void* product = again ? nullptr : step.product[blockIdx.y];
  C z = widen(static_cast<const S*>(d.igates.data)[place(rows, d.igates, t, b) + j]);
  z += load_or_zero<C, S>(d.b_ih, j) + load_or_zero<C, S>(d.b_hh, j);
  if (product) z += sum_of<C>(product, step.parts, i, rows.batch * H);
  S h;
  narrow(&h, activate<S>(z, r.nonlinearity));
  static_cast<S*>(d.output.data)[place(rows, d.output, t, b) + j] = h;
  if (d.copy.data) static_cast<S*>(d.copy.data)[place(rows, d.copy, t, b) + j] = h;
  if (step.state[blockIdx.y]) static_cast<S*>(step.state[blockIdx.y])[i] = h;
}

// As forward_step_kernel.
template <typename S>
FASTRNN_KERNEL(kThreads, 1)
void backward_step_kernel(const __grid_constant__ BackwardStep step) {
  using C = Accumulate<S>;
  const BackwardRecurrence& r = step.recurrence;
  const BackwardDirection& d = r.direction[blockIdx.y];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len, i = thread_number(), b = i / H, j = i % H;
  if (b >= step.num_rows) return;
  const int64_t t = d.reverse ? step.step : T - 1 - step.step, after = d.reverse ? t - 1 : t + 1;
  const int64_t length = row_length(rows, b);
  const bool here = t >= 0 && t < length, came = after >= 0 && after < length;

  // The walk back begins with grad_hn, at the row's last step; a row without steps hands it to hx.
  C carry = 0;
  if (came) {
    if (!here || !is_cut(rows, t, after, b))
      carry = sum_of<C>(step.product[blockIdx.y], step.parts, i, rows.batch * H);
  } else {
    carry = load_or_zero<C, S>(d.grad_hn, i);
  }
  const bool ends = came ? !here : length == 0 && step.step == T;
  if (ends && step.grad_hx[blockIdx.y]) static_cast<C*>(step.grad_hx[blockIdx.y])[i] = carry;
  if (t < 0 || t >= T || (!here && rows.start)) return;
  C grad = 0;
  if (here) {
    const C h = widen(static_cast<const S*>(d.output.data)[place(rows, d.output, t, b) + j]);
    if (d.grad_output.data) {
      const int64_t at = place(rows, d.grad_output, t, b) + j;
      carry += widen(static_cast<const S*>(d.grad_output.data)[at]);
    }
    grad = carry * slope(h, r.nonlinearity);
  }
  narrow(static_cast<S*>(d.grad_pre.data) + place(rows, d.grad_pre, t, b) + j, grad);
}

// A row of all steps for each 2^shift neighbouring threads, which take its features in turn: one
// division a row.
struct Lanes {
  int shift;

  explicit Lanes(int64_t features) : shift(0) {
    while (shift < 5 && int64_t{1} << shift < features) ++shift;
  }
  bool grid(int64_t rows, dim3* grid) const {
    return rows <= INT64_MAX >> shift && grid_for(rows << shift, 1, grid);
  }
  FASTRNN_DEVICE int64_t row() const { return thread_number() >> shift; }
  FASTRNN_DEVICE int count() const { return 1 << shift; }
  FASTRNN_DEVICE int first() const { return static_cast<int>(threadIdx.x) % count(); }
};

// Zeros where `from` is null.
template <typename S>
FASTRNN_DEVICE void copy_row(S* __restrict__ to, const S* __restrict__ from, int64_t features,
                             const Lanes& lanes) {
  S zero;
  narrow(&zero, Accumulate<S>(0));
#pragma unroll 4
  for (int64_t j = lanes.first(); j < features; j += lanes.count()) to[j] = from ? from[j] : zero;
}

// Tile plan: 1 to 32 threads have a row of one step. Sync plan: none. Limits: none.
template <typename S>
FASTRNN_KERNEL(kThreads, 1)
void previous_states_kernel(const __grid_constant__ PreviousStates task, Lanes lanes) {
  const Rows& rows = task.rows;
  const int64_t row = lanes.row(), t = row / rows.batch, b = row - t * rows.batch;
  if (t >= rows.seq_len) return;
  const bool there = t < row_length(rows, b);
  if (!there && rows.start) return;
  const S* const from =
      there ? previous_state<S>(rows, task.reverse, task.output, task.hx, task.hx_row_stride, t, b)
            : nullptr;
  copy_row(static_cast<S*>(task.previous.data) + place(rows, task.previous, t, b), from,
           task.hidden_size, lanes);
}

// As previous_states_kernel.
template <typename S>
FASTRNN_KERNEL(kThreads, 1)
void masked_copy_kernel(const __grid_constant__ MaskedCopy task, Lanes lanes) {
  const Rows& rows = task.rows;
  const int64_t row = lanes.row(), t = row / rows.batch, b = row - t * rows.batch;
  if (t >= rows.seq_len) return;
  const S* from = nullptr;
  if (t < row_length(rows, b))
    from = static_cast<const S*>(task.from.data) + place(rows, task.from, t, b);
  copy_row(static_cast<S*>(task.to.data) + place(rows, task.to, t, b), from, task.features, lanes);
}

// Tile plan: a thread has a row; if the order is wanted, one block has all rows. A row's place is
//   the number of those that are longer, or as long and before it: that of a stable sort.
// Sync plan: one barrier, between copying the lengths to shared memory and counting.
// Limits: with an order, kMostRanked rows, which the caller checks. Why: a sort takes several
// launches; and each length is read only once, so that the order stays complete whatever others
// write meanwhile.
FASTRNN_KERNEL(kThreads, 1)
void check_lengths_kernel(const int64_t* lengths, int64_t batch, int64_t seq_len, int64_t* checked,
                          int64_t* order) {
  // Of an order [batch]: what is larger the longer the row, and of equal ones for the first.
  auto* keys = shared_memory<uint64_t>();
  for (int64_t b = thread_number(); b < batch; b += int64_t{gridDim.z} * gridDim.x * kThreads) {
    const int64_t length = *static_cast<const volatile int64_t*>(lengths + b);  // once
    checked[b] = length;
    if (order) keys[b] = static_cast<uint64_t>(length + 1) * kMostRanked - b;
    if (length >= 0 && length <= seq_len) continue;
    printf("rnn: expected lengths between 0 and %lld, got %lld for row %lld\n",
           static_cast<long long>(seq_len), static_cast<long long>(length),
           static_cast<long long>(b));
    fail();
  }
  if (!order) return;
  block_sync();  // the keys are there
  for (int b = threadIdx.x; b < batch; b += kThreads) {
    int place = 0;
#pragma unroll 8
    for (int other = 0; other < batch; ++other) place += keys[other] > keys[b];
    order[place] = b;
  }
}

// Numbers that come with a launch: its arguments are at most 4 KiB.
template <typename T>
struct Part {
  static constexpr int kCount = 3840 / sizeof(T);
  T values[kCount];
};

template <typename T>
FASTRNN_KERNEL(kThreads, 1)
void take_numbers_kernel(const __grid_constant__ Part<T> part, int count, int64_t* to) {
  const int64_t i = thread_number();
  if (i < count) to[i] = part.values[i];
}

// to[i] = from(i), on the device, for i from 0 up.
template <typename T, typename F>
cudaError_t take_numbers(int64_t count, int64_t* to, cudaStream_t stream, F&& from) {
  constexpr int kCount = Part<T>::kCount;
  for (int64_t first = 0; first < count; first += kCount) {
    const int here = static_cast<int>(count - first < kCount ? count - first : kCount);
    Part<T> part{};
    for (int i = 0; i < here; ++i) part.values[i] = static_cast<T>(from(first + i));
    const dim3 grid((kCount + kThreads - 1) / kThreads);
    const cudaError_t error =
        launch(take_numbers_kernel<T>, {grid, kThreads, 0, stream}, part, here, to + first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_forward_step(const ForwardStep& step, cudaStream_t stream) {
  const ForwardRecurrence& r = step.recurrence;
  dim3 grid;
  if (!grid_for(step.num_rows * r.hidden_size, r.num_directions, &grid))
    return cudaErrorInvalidValue;
  return with_type(r.dtype, [&](auto type) {
    return launch(forward_step_kernel<decltype(type)>, {grid, kThreads, 0, stream}, step);
  });
}

cudaError_t launch_backward_step(const BackwardStep& step, cudaStream_t stream) {
  const BackwardRecurrence& r = step.recurrence;
  dim3 grid;
  if (!grid_for(step.num_rows * r.hidden_size, r.num_directions, &grid))
    return cudaErrorInvalidValue;
  return with_type(r.dtype, [&](auto type) {
    return launch(backward_step_kernel<decltype(type)>, {grid, kThreads, 0, stream}, step);
  });
}

cudaError_t launch_previous_states(const PreviousStates& task, cudaStream_t stream) {
  dim3 grid;
  const Lanes lanes(task.hidden_size);
  if (!lanes.grid(task.rows.seq_len * task.rows.batch, &grid)) return cudaErrorInvalidValue;
  return with_type(task.dtype, [&](auto type) {
    return launch(previous_states_kernel<decltype(type)>, {grid, kThreads, 0, stream}, task, lanes);
  });
}

cudaError_t launch_masked_copy(const MaskedCopy& task, cudaStream_t stream) {
  dim3 grid;
  const Lanes lanes(task.features);
  if (!lanes.grid(task.rows.seq_len * task.rows.batch, &grid)) return cudaErrorInvalidValue;
  return with_type(task.dtype, [&](auto type) {
    return launch(masked_copy_kernel<decltype(type)>, {grid, kThreads, 0, stream}, task, lanes);
  });
}

cudaError_t launch_check_lengths(const int64_t* lengths, int64_t batch, int64_t seq_len,
                                 int64_t* checked, int64_t* order, cudaStream_t stream) {
  dim3 grid(1);
  if (order ? batch > kMostRanked : !grid_for(batch, 1, &grid)) return cudaErrorInvalidValue;
  const int shared_bytes = order ? static_cast<int>(batch * int64_t{sizeof(int64_t)}) : 0;
  return launch(check_lengths_kernel, {grid, kThreads, shared_bytes, stream}, lengths, batch,
                seq_len, checked, order);
}

cudaError_t launch_packed_rows(const int64_t* host_lengths, int64_t batch, int64_t seq_len,
                               int64_t* rows, cudaStream_t stream) {
  if (seq_len < 1 || seq_len > INT32_MAX) return cudaErrorInvalidValue;
  int64_t next = 0, active = batch;
  const auto number = [&](int64_t i) {
    if (i < batch) return host_lengths[i];
    const int64_t own = next;
    while (active > 0 && host_lengths[active - 1] <= i - batch) --active;
    next += active;
    return own;
  };
  if (batch <= INT32_MAX / seq_len)
    return take_numbers<int32_t>(batch + seq_len, rows, stream, number);
  return take_numbers<int64_t>(batch + seq_len, rows, stream, number);
}

}  // namespace fastrnn::cuda
