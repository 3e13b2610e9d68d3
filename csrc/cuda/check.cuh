// What a check runs on the device beside the kernels: numbers, plain products, and the comparison.
// Simple and slow on purpose.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "cuda/grads.h"
#include "cuda/math.cuh"
#include "cuda/recurrence.h"

namespace fastrnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDirections = 2;  // at most

FASTRNN_DEVICE int64_t thread_number() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

FASTRNN_DEVICE double load(Dtype dtype, const void* data, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(data)[i];
    case Dtype::kFloat64:
      return static_cast<const double*>(data)[i];
    case Dtype::kFloat16:
      return widen(static_cast<const Half*>(data)[i]);
    case Dtype::kBFloat16:
      return widen(static_cast<const BFloat16*>(data)[i]);
  }
  return 0;
}
FASTRNN_DEVICE void store(Dtype dtype, void* data, int64_t i, double x) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(data)[i] = static_cast<float>(x);
      return;
    case Dtype::kFloat64:
      static_cast<double*>(data)[i] = x;
      return;
    case Dtype::kFloat16:
      return narrow(static_cast<Half*>(data) + i, static_cast<float>(x));
    case Dtype::kBFloat16:
      return narrow(static_cast<BFloat16*>(data) + i, static_cast<float>(x));
  }
}

// data[i], uniform in -scale to scale, from i and the seed alone.
FASTRNN_KERNEL(kThreads, 1)
void fill_kernel(Dtype dtype, void* data, int64_t count, double scale, uint32_t seed) {
  const int64_t i = thread_number();
  if (i >= count) return;
  uint64_t x = (uint64_t{seed} << 40) + static_cast<uint64_t>(i) + 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;  // splitmix64 (Steele et al. 2014)
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  const double unit = static_cast<double>(x >> 11) * 0x1p-53;
  store(dtype, data, i, scale * (2 * unit - 1));
}

// The sum over k of w[j, k] * x[k], or of w[k, j] * x[k].
FASTRNN_DEVICE double product(Dtype dtype, bool tf32, const void* w, bool transposed, int64_t H,
                              int64_t j, const void* x, int64_t first) {
  const auto factor = [&](const void* data, int64_t i) {
    const double value = load(dtype, data, i);
    return tf32 ? double{float_of(tf32_of(static_cast<float>(value)))} : value;
  };
  double sum = 0;
  for (int64_t k = 0; k < H; ++k)
    sum += factor(w, transposed ? k * H + j : j * H + k) * factor(x, first + k);
  return sum;
}

// to[b, j], in the accumulation type, for rows of x that lie row_stride apart: what the operators
// ask cuBLAS for.
FASTRNN_KERNEL(kThreads, 1)
void product_kernel(Dtype dtype, const void* x, int64_t row_stride, const void* w, bool transposed,
                    int64_t rows, int64_t H, void* to) {
  const int64_t i = thread_number();
  if (i >= rows * H) return;
  const double sum = product(dtype, false, w, transposed, H, i % H, x, i / H * row_stride);
  store(dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32, to, i, sum);
}

// What is compared, in the order of kNames below.
enum Result : int {
  kOutput,
  kCopy,
  kHn,
  kPrevious,
  kMasked,
  kOrder,
  kGradPre,
  kGradHx,
  kGradWIh,
  kGradWHh,
  kGradB
};
const char* const kNames[] = {"output",   "copy",    "hn",        "h_prev",    "masked_x", "order",
                              "grad_pre", "grad_hx", "grad_w_ih", "grad_w_hh", "grad_b"};

// Numbers that are compared, and the worst: the bits of its error, and in the lower half its place.
struct Findings {
  uint64_t worst;
  uint32_t compared;
};

// The place of an element among all that a check compares; t = T for those without a step, and of
// weights t = b = 0 and their row.
struct Places {
  int64_t steps, batch, hidden_size;

  FASTRNN_DEVICE uint32_t of(Result result, int d, int64_t t, int64_t b, int64_t j) const {
    const int64_t step = (result * kDirections + d) * (steps + 1) + t;
    return static_cast<uint32_t>((step * batch + b) * hidden_size + j);
  }
  std::string name(uint32_t place) const {
    const int64_t step = place / hidden_size / batch, which = step / (steps + 1);
    char text[100];
    std::snprintf(text, sizeof text, "%s[%d], t %d, b %d, j %d", kNames[which / kDirections],
                  static_cast<int>(which % kDirections), static_cast<int>(step % (steps + 1)),
                  static_cast<int>(place / hidden_size % batch),
                  static_cast<int>(place % hidden_size));
    return text;
  }
};

// NaN counts as infinite.
FASTRNN_DEVICE void compare(Findings* found, uint32_t place, double got, double want) {
  const double size = fabs(want);
  float error = static_cast<float>(fabs(got - want) / (size > 1 ? size : 1.0));
  if (!(error >= 0)) error = INFINITY;
  atomic_max(&found->worst, uint64_t{bits_of(error)} << 32 | place);
  add_release(&found->compared, 1);
}

// A thread has an element of a step or, where t = T, of the final state.
template <typename Direction>
struct Element {
  const Recurrence<Direction>& r;
  Findings* found;
  int64_t t, b, j, length;

  FASTRNN_DEVICE Element(const Recurrence<Direction>& r, Findings* found) : r(r), found(found) {
    const int64_t i = thread_number(), B = r.rows.batch, H = r.hidden_size;
    t = i / (B * H);
    b = i / H % B;
    j = i % H;
    length = t <= r.rows.seq_len ? row_length(r.rows, b) : -1;  // -1: nothing
  }
  FASTRNN_DEVICE double at(const Sequence& x, int64_t step) const {
    return load(r.dtype, x.data, place(r.rows, x, step, b) + j);
  }
  FASTRNN_DEVICE double at_unit(const void* x) const { return x ? load(r.dtype, x, j) : 0; }
  FASTRNN_DEVICE void compare(Result result, double got, double want) const {
    const Places places{r.rows.seq_len, r.rows.batch, r.hidden_size};
    cuda::compare(found, places.of(result, blockIdx.y, t, b, j), got, want);
  }
};

// What serves whole calls, beside the recurrence: data null where it was not run.
struct Others {
  Sequence previous[kDirections];  // h_prev of every step
  Sequence masked[kDirections];    // igates, with zeros beyond a row's length
  const int64_t *order, *right_order;
};

// igates are those before output was written over them.
FASTRNN_KERNEL(kThreads, 1)
void compare_forward_kernel(const __grid_constant__ ForwardRecurrence r,
                            const __grid_constant__ Others others, Findings* found) {
  const int n = blockIdx.y;
  const ForwardDirection& d = r.direction[n];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len;
  const Element e(r, found);
  const int64_t t = e.t, length = e.length, hx = e.b * d.hx_row_stride;
  if (length < 0) return;
  if (t == T) {
    double want = d.hx ? load(r.dtype, d.hx, hx + e.j) : 0;
    if (length > 0) want = e.at(d.output, d.reverse ? 0 : length - 1);
    if (others.order && n == 0 && e.j == 0)
      e.compare(kOrder, static_cast<double>(others.order[e.b]),
                static_cast<double>(others.right_order[e.b]));
    return e.compare(kHn, load(r.dtype, d.hn, e.b * H + e.j), want);
  }
  if (t >= length && rows.start) return;
  const double got = e.at(d.output, t);
  double want = 0, previous = 0;
  if (t < length) {
    const int64_t before = d.reverse ? t + 1 : t - 1;
    want = e.at(d.igates, t) + e.at_unit(d.b_ih) + e.at_unit(d.b_hh);
    if (before < 0 || before >= length) {
      if (d.hx) {
        want += product(r.dtype, r.tf32, d.w_hh, false, H, e.j, d.hx, hx);
        previous = load(r.dtype, d.hx, hx + e.j);
      }
    } else if (!is_cut(rows, t, before, e.b)) {
      const int64_t from = place(rows, d.output, before, e.b);
      want += product(r.dtype, r.tf32, d.w_hh, false, H, e.j, d.output.data, from);
      previous = e.at(d.output, before);
    }
    want = r.nonlinearity == Nonlinearity::kRelu ? (want > 0 ? want : 0) : tanh(want);
  }
  e.compare(kOutput, got, want);
  if (d.copy.data) e.compare(kCopy, e.at(d.copy, t), got);
  if (others.previous[n].data) e.compare(kPrevious, e.at(others.previous[n], t), previous);
  if (others.masked[n].data)
    e.compare(kMasked, e.at(others.masked[n], t), t < length ? e.at(d.igates, t) : 0);
}

// grad_hx comes in its own type.
FASTRNN_KERNEL(kThreads, 1)
void compare_backward_kernel(const __grid_constant__ BackwardRecurrence r, Dtype grad_hx,
                             Findings* found) {
  const BackwardDirection& d = r.direction[blockIdx.y];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len;
  const Element e(r, found);
  const int64_t t = e.t, length = e.length;
  if (length < 0) return;
  // What comes to h from the step after it.
  const auto carry = [&](int64_t after) {
    return product(r.dtype, r.tf32, d.w_hh, true, H, e.j, d.grad_pre.data,
                   place(rows, d.grad_pre, after, e.b));
  };
  const double grad_hn = d.grad_hn ? load(r.dtype, d.grad_hn, e.b * H + e.j) : 0;
  if (t == T) {
    if (!d.grad_hx) return;
    const double want = length > 0 ? carry(d.reverse ? length - 1 : 0) : grad_hn;
    return e.compare(kGradHx, load(grad_hx, d.grad_hx, e.b * H + e.j), want);
  }
  if (t >= length && rows.start) return;
  double want = 0;
  if (t < length) {
    const int64_t after = d.reverse ? t - 1 : t + 1;
    if (after < 0 || after >= length) {
      want = grad_hn;
    } else if (!is_cut(rows, t, after, e.b)) {
      want = carry(after);
    }
    const double h = e.at(d.output, t);
    want = (want + e.at(d.grad_output, t)) *
           (r.nonlinearity == Nonlinearity::kRelu ? (h > 0 ? 1.0 : 0.0) : 1 - h * h);
  }
  e.compare(kGradPre, e.at(d.grad_pre, t), want);
}

// A thread has an element of [grad_w_ih | grad_w_hh | grad_b_ih | grad_b_hh]; h_prev is that of
// `others`.
FASTRNN_KERNEL(kThreads, 1)
void compare_weight_grads_kernel(const __grid_constant__ WeightGrads task,
                                 const __grid_constant__ Others others, Findings* found) {
  const int n = blockIdx.y;
  const WeightGradsDirection& d = task.direction[n];
  const Rows& rows = task.rows;
  const int64_t I = task.input_size, H = task.hidden_size, columns = I + H + (d.grad_b_ih ? 2 : 0);
  const int64_t i = thread_number(), unit = i / columns, column = i % columns;
  if (unit >= H) return;
  double want = 0;
  for (int64_t t = 0; t < rows.seq_len; ++t) {
    for (int64_t b = 0; b < rows.batch; ++b) {
      if (t >= row_length(rows, b)) continue;
      const auto at = [&](const Sequence& x, int64_t feature) {
        return load(task.dtype, x.data, place(rows, x, t, b) + feature);
      };
      const double grad = at(d.grad_pre, unit);
      want += column < I       ? grad * at(task.input, column)
              : column < I + H ? grad * at(others.previous[n], column - I)
                               : grad;
    }
  }
  const auto is = [&](Result result, const void* grads, int64_t of_row, int64_t first) {
    const Places places{rows.seq_len, rows.batch, H};
    compare(found, places.of(result, n, 0, 0, unit),
            load(task.dtype, grads, unit * of_row + column - first), want);
  };
  if (column < I) return is(kGradWIh, d.grad_w_ih, I, 0);
  if (column < I + H) return is(kGradWHh, d.grad_w_hh, H, I);
  is(kGradB, column == I + H ? d.grad_b_ih : d.grad_b_hh, 1, column);
}

}  // namespace
}  // namespace fastrnn::cuda
