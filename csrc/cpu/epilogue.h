// What a product does with its sums before it stores them: nothing, tanh or relu, or their
// derivatives' factors.
#pragma once

#include "cpu/simd.h"
#include "rnn.h"

namespace fastrnn::cpu {
namespace {

// tanh(x) = m / (m + 2) with m = expm1(2|x|) and the sign of x: odd, exact at 0 and where it
// saturates, NaN stays NaN. With y = 2|x| = n ln 2 + r and |r| <= ln 2 / 2, m is
// 2^n expm1(r) + (2^n - 1), and expm1(r) its Taylor polynomial.
template <typename T>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float kSaturation = 20.0f;  // of y: m / (m + 2) rounds to 1 from y = 18.1 on
  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits.
  static constexpr float kMagic = 12582912.0f;
  static constexpr float kLog2E = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f;  // few bits: n * kLn2High is exact
  static constexpr float kLn2Low = -2.12194440054690583e-4f;
  static constexpr int32_t kOne = 0x3f800000;
  static constexpr int kMantissa = 23;
  static constexpr float kTaylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120,
                                      1.0f / 24,   1.0f / 6,   0.5f};
};

template <>
struct TanhConstants<double> {
  static constexpr double kSaturation = 40.0;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2E = 1.44269504088896340736;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr int64_t kOne = 0x3ff0000000000000;
  static constexpr int kMantissa = 52;
  static constexpr double kTaylor[] = {1.0 / 87178291200.0,
                                       1.0 / 6227020800.0,
                                       1.0 / 479001600.0,
                                       1.0 / 39916800.0,
                                       1.0 / 3628800.0,
                                       1.0 / 362880.0,
                                       1.0 / 40320.0,
                                       1.0 / 5040.0,
                                       1.0 / 720.0,
                                       1.0 / 120.0,
                                       1.0 / 24.0,
                                       1.0 / 6.0,
                                       0.5};
};

template <typename T>
FASTRNN_INLINE Vec<T> tanh(Vec<T> x) {
  using K = TanhConstants<T>;
  using I = Bits<T>;
  const I sign = (I)x & (I)broadcast<T>(-T(0));
  Vec<T> y = (Vec<T>)((I)x ^ sign) * 2;
  y = at_most<T>(y, broadcast<T>(K::kSaturation));
  const Vec<T> shifted = y * K::kLog2E + K::kMagic;
  const Vec<T> n = shifted - K::kMagic;
  const Vec<T> r = (y - n * K::kLn2High) - n * K::kLn2Low;
  // Even and odd coefficients apart: half as long a chain.
  constexpr int kLast = sizeof(K::kTaylor) / sizeof(T) - 1;
  const Vec<T> r2 = r * r;
  Vec<T> even = broadcast<T>(K::kTaylor[kLast % 2]), odd = broadcast<T>(K::kTaylor[1 - kLast % 2]);
  FASTRNN_UNROLL
  for (int i = kLast % 2 + 2; i <= kLast; i += 2) even = even * r2 + K::kTaylor[i];
  FASTRNN_UNROLL
  for (int i = 1 - kLast % 2 + 2; i <= kLast; i += 2) odd = odd * r2 + K::kTaylor[i];
  const Vec<T> p = (odd * r + even) * r2 + r;
  const Vec<T> scale = (Vec<T>)(((I)shifted << K::kMantissa) + K::kOne);
  const Vec<T> m = scale * p + (scale - 1);
  return (Vec<T>)((I)(m / (m + 2)) | sign);
}

// Not max(x, 0), which would drop NaN.
template <typename T>
FASTRNN_INLINE Vec<T> relu(Vec<T> x) {
  return x < 0 ? Vec<T>{} : x;
}

enum class Epilogue { kStore, kTanh, kRelu, kTanhGrad, kReluGrad };

FASTRNN_INLINE Epilogue epilogue_of(Nonlinearity f) {
  switch (f) {
    case Nonlinearity::kTanh:
      return Epilogue::kTanh;
    case Nonlinearity::kRelu:
      return Epilogue::kRelu;
  }
  return Epilogue::kStore;
}
FASTRNN_INLINE Epilogue grad_epilogue_of(Nonlinearity f) {
  switch (f) {
    case Nonlinearity::kTanh:
      return Epilogue::kTanhGrad;
    case Nonlinearity::kRelu:
      return Epilogue::kReluGrad;
  }
  return Epilogue::kStore;
}

// Function objects, not lambdas: GCC does not apply the target pragma to a lambda's own signature.
template <typename C>
struct StoreEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C>) const { return x; }
};
template <typename C>
struct TanhEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C>) const { return tanh<C>(x); }
};
template <typename C>
struct ReluEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C>) const { return relu<C>(x); }
};
template <typename C>
struct TanhGradEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C> h) const { return x * (1 - h * h); }
};
template <typename C>
struct ReluGradEpilogue {
  FASTRNN_INLINE Vec<C> operator()(Vec<C> x, Vec<C> h) const {
    return h <= 0 ? Vec<C>{} : x;  // NaN passes, as in torch
  }
};

// Calls with(f) for the epilogue's function f.
template <typename C, typename With>
FASTRNN_INLINE void with_epilogue(Epilogue epilogue, const With& with) {
  switch (epilogue) {
    case Epilogue::kStore:
      return with(StoreEpilogue<C>{});
    case Epilogue::kTanh:
      return with(TanhEpilogue<C>{});
    case Epilogue::kRelu:
      return with(ReluEpilogue<C>{});
    case Epilogue::kTanhGrad:
      return with(TanhGradEpilogue<C>{});
    case Epilogue::kReluGrad:
      return with(ReluGradEpilogue<C>{});
  }
}

// What a leaky step makes of a sum x, or of its gradient; F is the epilogue without a leak.
template <typename C>
struct Leaked {
  Vec<C> out, carry, kept;  // see Leaking in product.h
};
template <typename C, typename F>
struct RateStep {
  FASTRNN_INLINE Leaked<C> operator()(Vec<C> x, Vec<C> h, Vec<C> carried, Vec<C> alpha) const {
    const Vec<C> rate = F{}(x, h), next = (1 - alpha) * carried + alpha * rate;
    return {next, next, rate};
  }
};
template <typename C, typename F>
struct RateGrad {
  FASTRNN_INLINE Leaked<C> operator()(Vec<C> x, Vec<C> h, Vec<C> carried, Vec<C> alpha) const {
    const Vec<C> g = x + carried;
    return {alpha * F{}(g, h), (1 - alpha) * g, g};
  }
};
template <typename C, typename F>
struct CurrentStep {
  FASTRNN_INLINE Leaked<C> operator()(Vec<C> x, Vec<C> h, Vec<C> carried, Vec<C> alpha) const {
    const Vec<C> next = (1 - alpha) * carried + alpha * x;
    return {F{}(next, h), next, x - carried};
  }
};
template <typename C, typename F>
struct CurrentGrad {
  FASTRNN_INLINE Leaked<C> operator()(Vec<C> x, Vec<C> h, Vec<C> carried, Vec<C> alpha) const {
    const Vec<C> g = F{}(x, h) + carried;
    return {alpha * g, (1 - alpha) * g, g};
  }
};

// Calls with(f) for the leaky step's function f.
template <typename C, typename With>
FASTRNN_INLINE void with_leak(Leak form, Epilogue epilogue, const With& with) {
  const bool rate = form == Leak::kRate;
  switch (epilogue) {
    case Epilogue::kStore:
      return;
    case Epilogue::kTanh:
      return rate ? with(RateStep<C, TanhEpilogue<C>>{}) : with(CurrentStep<C, TanhEpilogue<C>>{});
    case Epilogue::kRelu:
      return rate ? with(RateStep<C, ReluEpilogue<C>>{}) : with(CurrentStep<C, ReluEpilogue<C>>{});
    case Epilogue::kTanhGrad:
      return rate ? with(RateGrad<C, TanhGradEpilogue<C>>{})
                  : with(CurrentGrad<C, TanhGradEpilogue<C>>{});
    case Epilogue::kReluGrad:
      return rate ? with(RateGrad<C, ReluGradEpilogue<C>>{})
                  : with(CurrentGrad<C, ReluGradEpilogue<C>>{});
  }
}

}  // namespace
}  // namespace fastrnn::cpu
