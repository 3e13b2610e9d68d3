#include <cstring>

#include "cpu/kernels.h"

namespace fastrnn::cpu {

const Kernels& select_kernels(const char* capability) {
#if defined(__x86_64__)
  const bool is_default = std::strcmp(capability, "DEFAULT") == 0, is_avx2 = std::strcmp(capability, "AVX2") == 0;
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (!is_default && !is_avx2 && has_avx2 && has_avx512) return avx512_kernels();
  if (!is_default && has_avx2) return avx2_kernels();
#else
  (void)capability;
#endif
  return baseline_kernels();
}

}  // namespace fastrnn::cpu
