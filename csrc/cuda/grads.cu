// The gradients of a layer's weights and biases in one launch.
#include "cuda/grads.h"
#include "cuda/math.cuh"

namespace fastrnn::cuda {
namespace {

constexpr int kGradsThreads = 256, kTile = kGradsTile;
constexpr int kOwn = 4;  // a thread has kOwn x kOwn sums
constexpr int kSharers = kTile / kOwn, kPerRow = kSharers * kSharers;  // threads of a row
constexpr int kTeams = kGradsThreads / kPerRow;  // rows that are added at a time
constexpr int kFactors = 2 * kTile, kLoaders = kGradsThreads / kFactors;

// Rows that are in shared memory at a time.
template <typename C>
constexpr int kRows = 2048 / int{sizeof(C)};

// What a row's factors are taken from; null: zeros.
template <typename S>
struct Factors {
  const S* from[3];  // grad_pre, the input, h_prev
};

template <typename S>
FASTRNN_DEVICE Factors<S> factors_of(const WeightGrads& task, const WeightGradsDirection& d,
                                     int row) {
  const Rows& rows = task.rows;
  const int batch = static_cast<int>(rows.batch), t = row / batch, b = row - t * batch;
  if (t >= row_length(rows, b)) return {};
  return {static_cast<const S*>(d.grad_pre.data) + place(rows, d.grad_pre, t, b),
          static_cast<const S*>(task.input.data) + place(rows, task.input, t, b),
          previous_state<S>(rows, d.reverse, d.output, d.hx, d.hx_row_stride, t, b)};
}

// Which of a row's factors a thread brings to shared memory, for all rows: one of grad_pre or of
// the columns [input | h_prev | 1].
struct Column {
  int source = -1;    // in Factors; -1: none
  int feature = 0;    // of the source
  float instead = 0;  // where there is no source

  FASTRNN_DEVICE Column(bool is_unit, int place, int input_size, int hidden_size) {
    if (is_unit) {
      if (place < hidden_size) source = 0, feature = place;
    } else if (place < input_size) {
      source = 1, feature = place;
    } else if (place < input_size + hidden_size) {
      source = 2, feature = place - input_size;
    } else if (place == input_size + hidden_size) {
      instead = 1;
    }
  }
};

// This thread's column of the rows in shared memory: all loads are issued before any is awaited.
template <typename S, typename C>
FASTRNN_DEVICE void bring(const Column& column, const Factors<S>* factors, const S* somewhere,
                          int count, C* to) {
  constexpr int kLoads = kRows<C> / kLoaders;
  static_assert(kLoads <= 32);
  const int first = static_cast<int>(threadIdx.x) / kFactors;
  S loaded[kLoads];
  uint32_t there = 0;
#pragma unroll
  for (int n = 0; n < kLoads; ++n) {
    const int row = first + n * kLoaders;
    if (row >= count) break;
    const S* from = column.source < 0 ? nullptr : factors[row].from[column.source];
    there |= uint32_t{from != nullptr} << n;
    loaded[n] = *(from ? from + column.feature : somewhere);  // no branch, which would wait
  }
#pragma unroll
  for (int n = 0; n < kLoads; ++n) {
    const int row = first + n * kLoaders;
    if (row >= count) break;
    to[row * kTile] = there >> n & 1 ? C(widen(loaded[n])) : C(column.instead);
  }
}

template <typename S, typename C>
FASTRNN_DEVICE void put_grad(const WeightGrads& task, const WeightGradsDirection& d, int64_t unit,
                             int64_t column, C sum) {
  const int64_t I = task.input_size, H = task.hidden_size;
  if (unit >= H) return;
  if (column < I) {
    narrow(static_cast<S*>(d.grad_w_ih) + unit * I + column, sum);
  } else if (column < I + H) {
    narrow(static_cast<S*>(d.grad_w_hh) + unit * H + column - I, sum);
  } else if (column == I + H && d.grad_b_ih) {
    narrow(static_cast<S*>(d.grad_b_ih) + unit, sum);
    narrow(static_cast<S*>(d.grad_b_hh) + unit, sum);
  }
}

// grad_pre^T @ [input | h_prev | 1].
//
// Tile plan: a block has kTile units of kTile columns, for all rows. Four threads add a row's
//   products, each of a quarter of the tile, and kTeams of these take rows in turn; their sums are
//   added at the end, always in the same order.
// Sync plan: in each turn of kRows rows a barrier after it is known where their factors are, and
//   one when these have come. Factors are overwritten after the first, and where they are after the
//   second; both were read before. At the end one before and one after the teams' sums take the
//   factors' place.
// Limits: fewer than 2^31 rows and columns; the launcher checks.
// Why: one launch in place of four or five. Small tiles, since each block has all rows and only
// many blocks are fast; are_few() has the estimate.
template <typename S>
FASTRNN_KERNEL(kGradsThreads, 1)
void weight_grads_kernel(const __grid_constant__ WeightGrads task) {
  using C = Accumulate<S>;
  constexpr int kHere = kRows<C>;
  static_assert(kTeams <= 2 * kHere / kTile, "the teams' sums take the factors' place");
  const WeightGradsDirection& d = task.direction[blockIdx.z];
  const int thread = threadIdx.x, factor = thread % kFactors,
            rows = static_cast<int>(task.rows.seq_len * task.rows.batch);
  const int first_unit = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  C* const values = shared_memory<C>();  // [2][kHere, kTile], grad_pre and columns
  auto* const factors = reinterpret_cast<Factors<S>*>(values + 2 * kHere * kTile);
  const bool is_unit = factor < kTile;
  const Column column(is_unit, (is_unit ? first_unit : first_column) + factor % kTile,
                      static_cast<int>(task.input_size), static_cast<int>(task.hidden_size));
  C* const to = values + (is_unit ? 0 : kHere * kTile) + factor % kTile;

  const int team = thread / kPerRow, units = thread % kSharers * kOwn,
            columns = thread / kSharers % kSharers * kOwn;
  C sums[kOwn][kOwn] = {};
  for (int first = 0; first < rows; first += kHere) {
    const int count = rows - first < kHere ? rows - first : kHere;
    for (int row = thread; row < count; row += kGradsThreads)
      factors[row] = factors_of<S>(task, d, first + row);
    block_sync();
    bring(column, factors, static_cast<const S*>(d.grad_pre.data), count, to);
    block_sync();
#pragma unroll 2
    for (int row = team; row < count; row += kTeams) {
      const C* grad = values + row * kTile + units;
      const C* x = values + (kHere + row) * kTile + columns;
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sums[i][j] += grad[i] * x[j];
    }
  }

  block_sync();
#pragma unroll
  for (int i = 0; i < kOwn; ++i)
#pragma unroll
    for (int j = 0; j < kOwn; ++j)
      values[(team * kTile + units + i) * kTile + columns + j] = sums[i][j];
  block_sync();
  if (thread >= kTile * kTile) return;
  C sum = 0;
#pragma unroll 8
  for (int n = 0; n < kTeams; ++n) sum += values[n * kTile * kTile + thread];
  put_grad<S>(task, d, first_unit + thread / kTile, first_column + thread % kTile, sum);
}

}  // namespace

cudaError_t launch_weight_grads(const WeightGrads& task, cudaStream_t stream) {
  const int64_t I = task.input_size, H = task.hidden_size, B = task.rows.batch;
  const int64_t units = tiles_of(H),
                columns = tiles_of(I + H + (task.direction[0].grad_b_ih ? 1 : 0));
  if (B == 0 || task.rows.seq_len > (INT32_MAX - kRows<float>) / B || I > INT32_MAX / 2 ||
      units > 65535)
    return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(units),
                  task.num_directions);
  return with_type(task.dtype, [&]<typename S>(S) {
    using C = Accumulate<S>;
    constexpr int kShared = kRows<C> * int{kFactors * sizeof(C) + sizeof(Factors<S>)};
    return launch(weight_grads_kernel<S>, {grid, kGradsThreads, kShared, stream}, task);
  });
}

}  // namespace fastrnn::cuda
