// The arithmetic and the row addresses that all kernels share.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/recurrence.h"

namespace fastrnn::cuda {

template <typename S>
using Accumulate = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Calls f with a value of the storage type.
template <typename F>
cudaError_t with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Half{});
  }
  return cudaErrorInvalidValue;
}

// To 4 ulp: 1 - 2 / (e^2x + 1), and near zero, where that cancels, the odd polynomial of Cephes'
// tanhf. Odd; NaN stays; 1 in saturation, where e^2x overflows.
FASTRNN_DEVICE float tanh_of(float x) {
  const float a = fabsf(x);
  const float e = fast_exp2(a * 2.885390081777927f);  // 2 / ln 2
  const float large = fmaf(-2.0f, fast_reciprocal(e + 1.0f), 1.0f);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = fmaf(p, z, 2.06390887954e-2f);
  p = fmaf(p, z, -5.37397155531e-2f);
  p = fmaf(p, z, 1.33314422036e-1f);
  p = fmaf(p, z, -3.33332819422e-1f);
  const float small = fmaf(x * z, p, x);
  return a < 0.625f ? small : copysignf(large, x);
}
FASTRNN_DEVICE double tanh_of(double x) { return tanh(x); }

// f(x), as exact as a result of type S shows.
template <typename S, typename C>
FASTRNN_DEVICE C activate(C x, Nonlinearity f) {
  if (f == Nonlinearity::kTanh) {
    if constexpr (sizeof(S) == 2) return fast_tanh(x);
    return tanh_of(x);
  }
  return x <= 0 ? C(0) : x;  // NaN stays
}

// f'(pre) from h = f(pre).
template <typename C>
FASTRNN_DEVICE C slope(C h, Nonlinearity f) {
  if (f == Nonlinearity::kRelu)
    return h <= 0 ? C(0) : C(1);  // as torch: NaN lets the gradient through
  return C(1) - h * h;
}

template <typename C, typename S>
FASTRNN_DEVICE C load_or_zero(const void* data, int64_t i) {
  return data ? C(widen(static_cast<const S*>(data)[i])) : C(0);
}

FASTRNN_DEVICE int64_t row_length(const Rows& rows, int64_t b) {
  return rows.lengths ? rows.lengths[b] : rows.seq_len;
}
FASTRNN_DEVICE int64_t row_at(const Rows& rows, int64_t i) {
  return rows.order ? rows.order[i] : i;
}
// The first feature of element (t, b), in elements from the data pointer.
FASTRNN_DEVICE int64_t place(const Rows& rows, const Sequence& x, int64_t t, int64_t b) {
  const int64_t row = rows.start ? rows.start[t] + b : b;
  return t * x.step_stride + row * x.row_stride;
}
// Whether a new sequence begins between the neighbouring steps t and s.
FASTRNN_DEVICE bool is_cut(const Rows& rows, int64_t t, int64_t s, int64_t b) {
  const int64_t later = t > s ? t : s;
  return rows.reset && rows.reset[later * rows.reset_step_stride + b * rows.reset_row_stride];
}

// The h_prev of step t of row b, which has that step: h of the step walked before, or of hx at the
// first; null where it is zero.
template <typename S>
FASTRNN_DEVICE const S* previous_state(const Rows& rows, bool reverse, const Sequence& output,
                                       const void* hx, int64_t hx_row_stride, int64_t t,
                                       int64_t b) {
  const int64_t before = reverse ? t + 1 : t - 1;
  if (before < 0 || before >= row_length(rows, b))
    return hx ? static_cast<const S*>(hx) + b * hx_row_stride : nullptr;
  if (is_cut(rows, t, before, b)) return nullptr;
  return static_cast<const S*>(output.data) + place(rows, output, before, b);
}

}  // namespace fastrnn::cuda
