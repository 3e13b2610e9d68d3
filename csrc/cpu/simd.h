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

}  // namespace
}  // namespace fastrnn::cpu
