// The kernels compiled for AVX2 and FMA. The target is set before the first include: everything
// below is for it alone, and nothing of it may be seen by other files, so all lies in anonymous
// namespaces and no std template is used.
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define FASTRNN_AVX2

namespace fastrnn::cpu {
namespace {
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
}  // namespace
}  // namespace fastrnn::cpu

#include "cpu/table.h"

namespace fastrnn::cpu {

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = make_kernels("avx2");
  return kernels;
}

}  // namespace fastrnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // x86-64
