// Numbers as they are stored, as floats and back: bfloat16, float16, and pairs of bfloat16.
#pragma once

#include "cpu/simd.h"

namespace fastrnn::cpu {
namespace {

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
