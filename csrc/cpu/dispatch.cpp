#include <cstring>

#include "cpu/kernels.h"

namespace fastrnn::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

const Kernels& avx512_with_bf16_kernels() {
  static const Kernels kernels = [] {
    Kernels k = avx512_kernels();
    k.name = "avx512_bf16";
    k.typed[static_cast<int>(Dtype::kBFloat16)] = avx512_bf16_kernels();
    return k;
  }();
  return kernels;
}
#endif

}  // namespace

const Kernels* find_kernels(const char* name) {
  if (std::strcmp(name, baseline_kernels().name) == 0) return &baseline_kernels();
#if defined(__x86_64__)
  if (std::strcmp(name, "avx2") == 0 && has_avx2()) return &avx2_kernels();
  if (std::strcmp(name, "avx512") == 0 && has_avx512()) return &avx512_kernels();
  if (std::strcmp(name, "avx512_bf16") == 0 && has_avx512() &&
      __builtin_cpu_supports("avx512bf16")) {
    return &avx512_with_bf16_kernels();
  }
#endif
  return nullptr;
}

const Kernels& select_kernels(const char* capability) {
  const bool is_default = std::strcmp(capability, "DEFAULT") == 0,
             is_avx2 = std::strcmp(capability, "AVX2") == 0;
  const char* const names[] = {"avx512_bf16", "avx512", "avx2"};
  for (int i = is_default ? 3 : is_avx2 ? 2 : 0; i < 3; ++i) {
    if (const Kernels* kernels = find_kernels(names[i])) return *kernels;
  }
  return baseline_kernels();
}

}  // namespace fastrnn::cpu
