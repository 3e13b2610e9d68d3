// Masked loads and stores that sanitizers see: the compiler does not check its own. sanitize.py
// includes this before all else. A mask is of the first lanes, as load_first and store_first have.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__SANITIZE_THREAD__)
#define READ_RANGE __tsan_read_range
#define WRITE_RANGE __tsan_write_range
#else
#define READ_RANGE __asan_loadN
#define WRITE_RANGE __asan_storeN
#endif
extern "C" {
void READ_RANGE(void*, long);
void WRITE_RANGE(void*, long);
}

namespace {

inline void see_read(const void* p, unsigned mask, long element) {
  READ_RANGE(const_cast<void*>(p), __builtin_popcount(mask) * element);
}

inline void see_write(void* p, unsigned mask, long element) {
  WRITE_RANGE(p, __builtin_popcount(mask) * element);
}

}  // namespace

#define SIGNS_PS(m) _mm256_movemask_ps(_mm256_castsi256_ps(m))
#define SIGNS_PD(m) _mm256_movemask_pd(_mm256_castsi256_pd(m))

// Inside itself a macro is not expanded: there the name is the compiler's.
#define _mm256_maskload_ps(p, m) (see_read(p, SIGNS_PS(m), 4), _mm256_maskload_ps(p, m))
#define _mm256_maskload_pd(p, m) (see_read(p, SIGNS_PD(m), 8), _mm256_maskload_pd(p, m))
#define _mm256_maskstore_ps(p, m, v) (see_write(p, SIGNS_PS(m), 4), _mm256_maskstore_ps(p, m, v))
#define _mm256_maskstore_pd(p, m, v) (see_write(p, SIGNS_PD(m), 8), _mm256_maskstore_pd(p, m, v))
#define _mm256_maskz_loadu_epi16(m, p) (see_read(p, m, 2), _mm256_maskz_loadu_epi16(m, p))
#define _mm512_maskz_loadu_epi16(m, p) (see_read(p, m, 2), _mm512_maskz_loadu_epi16(m, p))
#define _mm512_maskz_loadu_ps(m, p) (see_read(p, m, 4), _mm512_maskz_loadu_ps(m, p))
#define _mm512_maskz_loadu_pd(m, p) (see_read(p, m, 8), _mm512_maskz_loadu_pd(m, p))
#define _mm512_mask_storeu_ps(p, m, v) (see_write(p, m, 4), _mm512_mask_storeu_ps(p, m, v))
#define _mm512_mask_storeu_pd(p, m, v) (see_write(p, m, 8), _mm512_mask_storeu_pd(p, m, v))
#endif
