// Vectors of one register, for the instruction set that the including file is compiled for: it sets
// kVectorBytes and, where intrinsics may be used, FASTRNN_AVX2 and FASTRNN_AVX512 (GCC's target
// pragma does not set __AVX2__ and the like).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(FASTRNN_AVX2)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define FASTRNN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FASTRNN_UNROLL _Pragma("GCC unroll 32")
#endif
#define FASTRNN_INLINE inline __attribute__((always_inline))

namespace fastrnn::cpu {
namespace {

template <typename T>
struct Vector;

template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vec = typename Vector<T>::type;
template <typename T>
using Bits = typename Vector<T>::bits;
template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T>
FASTRNN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}

template <typename T>
FASTRNN_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = v;
}

template <typename T>
FASTRNN_INLINE Vec<T> broadcast(T x) {
  Vec<T> v;
  FASTRNN_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) v[i] = x;
  return v;
}

// The first n lanes (0 < n < kLanes); memory behind them is not touched, the other lanes load as
// zero.
template <typename T>
FASTRNN_INLINE Vec<T> load_first(const T* p, int n) {
#if defined(FASTRNN_AVX512)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
  }
#elif defined(FASTRNN_AVX2)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm256_maskload_ps(p, (__m256i)(Bits<T>{0, 1, 2, 3, 4, 5, 6, 7} < n));
  } else {
    return (Vec<T>)_mm256_maskload_pd(p, (__m256i)(Bits<T>{0, 1, 2, 3} < n));
  }
#else
  Vec<T> v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

template <typename T>
FASTRNN_INLINE void store_first(T* p, Vec<T> v, int n) {
#if defined(FASTRNN_AVX512)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
  }
#elif defined(FASTRNN_AVX2)
  if constexpr (sizeof(T) == 4) {
    _mm256_maskstore_ps(p, (__m256i)(Bits<T>{0, 1, 2, 3, 4, 5, 6, 7} < n), (__m256)v);
  } else {
    _mm256_maskstore_pd(p, (__m256i)(Bits<T>{0, 1, 2, 3} < n), (__m256d)v);
  }
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Lanes of a (0 .. L-1) and b (L .. 2L-1) by number; the numbers must be constants once inlined.
template <typename T>
FASTRNN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Bits<T> lanes) {
#if defined(__clang__)
  Vec<T> y;
  FASTRNN_UNROLL
  for (int l = 0; l < kLanes<T>; ++l)
    y[l] = lanes[l] < kLanes<T> ? a[lanes[l]] : b[lanes[l] - kLanes<T>];
  return y;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Transposes kLanes<T> vectors as a square matrix, swapping blocks of ever smaller size across the
// diagonal.
template <typename T, int kBlock = kLanes<T> / 2>
FASTRNN_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  Bits<T> upper, lower;  // lanes of (a, b) that make the new rows i and i + kBlock
  FASTRNN_UNROLL
  for (int l = 0; l < L; ++l) {
    upper[l] = (l & kBlock) ? L + l - kBlock : l;
    lower[l] = (l & kBlock) ? L + l : l + kBlock;
  }
  FASTRNN_UNROLL
  for (int i = 0; i < L; ++i) {
    if (i & kBlock) continue;
    const Vec<T> a = rows[i], b = rows[i + kBlock];
    rows[i] = shuffle<T>(a, b, upper);
    rows[i + kBlock] = shuffle<T>(a, b, lower);
  }
  if constexpr (kBlock > 1) transpose<T, kBlock / 2>(rows);
}

// Lane l is the sum of the lanes of rows[l], by halves.
template <typename T, int kBlock = kLanes<T> / 2>
FASTRNN_INLINE Vec<T> sums_of_lanes(const Vec<T> (&rows)[2 * kBlock]) {
  constexpr int L = kLanes<T>;
  Bits<T> first, second;
  FASTRNN_UNROLL
  for (int l = 0; l < L; ++l) {
    first[l] = (l & kBlock) ? L + l - kBlock : l;
    second[l] = (l & kBlock) ? L + l : l + kBlock;
  }
  Vec<T> sums[kBlock];
  FASTRNN_UNROLL
  for (int i = 0; i < kBlock; ++i) {
    const Vec<T> a = rows[i], b = rows[i + kBlock];
    sums[i] = shuffle<T>(a, b, first) + shuffle<T>(a, b, second);
  }
  if constexpr (kBlock > 1) return sums_of_lanes<T, kBlock / 2>(sums);
  return sums[0];
}

// bound < x ? bound : x in one instruction; NaN goes through.
template <typename T>
FASTRNN_INLINE Vec<T> at_most(Vec<T> x, Vec<T> bound) {
#if defined(FASTRNN_AVX512)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_min_ps(0xffff, (__m512)bound, (__m512)x);
  } else {
    return (Vec<T>)_mm512_maskz_min_pd(0xff, (__m512d)bound, (__m512d)x);
  }
#elif defined(FASTRNN_AVX2)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm256_min_ps((__m256)bound, (__m256)x);
  } else {
    return (Vec<T>)_mm256_min_pd((__m256d)bound, (__m256d)x);
  }
#else
  return bound < x ? bound : x;
#endif
}

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

// Storage formats of 16 bits; arithmetic is in float. They may stand in memory that held floats.
struct __attribute__((may_alias)) BFloat16 {
  uint16_t bits;
};
struct __attribute__((may_alias)) Float16 {
  uint16_t bits;
};

template <typename S>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// Whether an instruction multiplies and adds pairs of a storage type: matrices are then packed in
// pairs, and sums are of two products at a time.
template <typename S>
constexpr bool kHasPairs = false;
#if defined(FASTRNN_AVX512_BF16)
template <>
constexpr bool kHasPairs<BFloat16> = true;
#endif

FASTRNN_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
FASTRNN_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

FASTRNN_INLINE float to_float(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

FASTRNN_INLINE void from_float(float x, BFloat16& y) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  y.bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0);
}

FASTRNN_INLINE float to_float(Float16 x) {
#if defined(FASTRNN_AVX2)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  // Inf and NaN go to the top exponent.
  const uint32_t exponent = rest >= 0x7c00 ? 0x70000000 : 0x38000000;
  if (rest < 0x400) return float_of(sign | bits_of(static_cast<float>(rest) * 0x1p-24f));
  return float_of(sign | ((rest << 13) + exponent));
#endif
}

FASTRNN_INLINE void from_float(float x, Float16& y) {
#if defined(FASTRNN_AVX2)
  y.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  uint32_t h;
  if (a > 0x7f800000) {
    h = 0x7e00;
  } else if (a >= 0x477ff000) {  // 65520 and up round to infinity
    h = 0x7c00;
  } else if (a < 0x38800000) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    h = bits_of(float_of(a) + 0.5f) - 0x3f000000;
  } else {
    h = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
  }
  y.bits = static_cast<uint16_t>(sign | h);
#endif
}

// Convert n elements between a storage type and its accumulation type.
#if defined(FASTRNN_AVX2)
inline void widen(float* to, const Float16* from, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  for (; i < n; ++i) to[i] = to_float(from[i]);
}
inline void narrow(Float16* to, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  for (; i < n; ++i) from_float(from[i], to[i]);
}
#endif
template <typename S, typename C>
inline void widen(C* to, const S* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
}
template <typename S, typename C>
inline void narrow(S* to, const C* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) from_float(from[i], to[i]);
}
inline void widen(float* to, const float* from, int64_t n) {
  std::memcpy(to, from, n * sizeof(float));
}
inline void narrow(float* to, const float* from, int64_t n) {
  std::memcpy(to, from, n * sizeof(float));
}
inline void widen(double* to, const double* from, int64_t n) {
  std::memcpy(to, from, n * sizeof(double));
}
inline void narrow(double* to, const double* from, int64_t n) {
  std::memcpy(to, from, n * sizeof(double));
}

// kLanes elements as floats.
FASTRNN_INLINE Vec<float> load_widened_all(const BFloat16* p) {
#if defined(FASTRNN_AVX2)
  typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
  Narrow bits;
  std::memcpy(&bits, p, sizeof(bits));
  return (Vec<float>)(__builtin_convertvector(bits, Bits<float>) << 16);
#else
  Vec<float> v = {};
  for (int l = 0; l < kLanes<float>; ++l) v[l] = to_float(p[l]);
  return v;
#endif
}
FASTRNN_INLINE Vec<float> load_widened_all(const Float16* p) {
#if defined(FASTRNN_AVX512)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff,
                                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(FASTRNN_AVX2)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v = {};
  for (int l = 0; l < kLanes<float>; ++l) v[l] = to_float(p[l]);
  return v;
#endif
}

// The first n elements (0 < n <= kLanes) as accumulation type, the rest zero.
template <typename C, typename S>
FASTRNN_INLINE Vec<C> load_widened(const S* p, int n) {
  if constexpr (sizeof(S) == sizeof(C)) {
    return n < kLanes<C> ? load_first(p, n) : load(p);
  } else if (n == kLanes<C>) {
    return load_widened_all(p);
  } else {
    C buffer[kLanes<C>] = {};
    widen(buffer, p, n);
    return load(buffer);
  }
}

#if defined(FASTRNN_AVX512_BF16)
// Vectors of pairs of bfloat16, a pair in the place of a float: (low, high).

// n elements of a row (0 < n), up to a vector of pairs; zero beyond.
FASTRNN_INLINE Vec<float> load_pairs(const BFloat16* p, int64_t n) {
  const __mmask32 mask = n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
  return (Vec<float>)_mm512_maskz_loadu_epi16(mask, p);
}
// Pairs of the elements of two rows, n of each (0 < n <= 16); a null row is zero.
FASTRNN_INLINE Vec<float> interleave(const BFloat16* low, const BFloat16* high, int64_t n) {
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  const __m512i a = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, low));
  const __m512i b =
      high ? _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, high)) : __m512i{};
  return (Vec<float>)_mm512_or_si512(a, _mm512_maskz_slli_epi32(0xffff, b, 16));
}
// sum += a.low * b.low + a.high * b.high, with one pair a for all lanes.
FASTRNN_INLINE Vec<float> add_pair(Vec<float> sum, Vec<float> b, uint32_t a) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)b,
                                      (__m512bh)_mm512_set1_epi32(static_cast<int>(a)));
}
FASTRNN_INLINE uint32_t pair_at(const BFloat16* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return pair;
}
#endif

}  // namespace
}  // namespace fastrnn::cpu
