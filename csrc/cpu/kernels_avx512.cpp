// The kernels compiled for AVX-512. The target is set before the first include: everything below is
// for it alone, and nothing of it may be seen by other files, so all lies in anonymous namespaces
// and no std template is used.
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define FASTRNN_AVX2
#define FASTRNN_AVX512

namespace fastrnn::cpu {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
}  // namespace
}  // namespace fastrnn::cpu

#include "cpu/table.h"

namespace fastrnn::cpu {

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = make_kernels("avx512");
  return kernels;
}

}  // namespace fastrnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // x86-64
