// The kernels compiled for what every processor of the architecture has: SSE2 on x86-64, NEON on
// aarch64.
#if defined(__x86_64__) && !defined(__clang__)
// GCC 12 loads four 16-bit numbers by way of MMX, and leaves the x87 stack unusable.
#pragma GCC target("no-mmx")
#endif

namespace fastrnn::cpu {
namespace {
constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
constexpr int kVectorRegisters = 32;
constexpr const char* kName = "neon";
#else
constexpr int kVectorRegisters = 16;
constexpr const char* kName = "baseline";
#endif
}  // namespace
}  // namespace fastrnn::cpu

#include "cpu/table.h"

namespace fastrnn::cpu {

const Kernels& baseline_kernels() {
  static constexpr Kernels kernels = make_kernels(kName);
  return kernels;
}

}  // namespace fastrnn::cpu
