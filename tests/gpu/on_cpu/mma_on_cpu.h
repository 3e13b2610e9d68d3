// The product of tensor cores (csrc/cuda/mma.cuh) on the CPU: cuda_on_cpu.h's part for it.
#pragma once

#include "cuda_on_cpu.h"

namespace fastrnn::cuda {

struct MmaOperands {
  float c[4];
  uint32_t a[4];
  uint32_t b[2];
};

template <typename T>
float mma_element(uint32_t bits, int which) {
  if constexpr (sizeof(T) == 4) {
    (void)which;
    return float_of(bits & ~0x1fffu);  // the hardware reads 19 bits
  } else {
    return widen(T{static_cast<uint16_t>(bits >> 16 * which)});
  }
}

template <typename T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands own;
  std::memcpy(own.c, c, sizeof own.c);
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  fibers::collective(
      &own, sizeof own,
      [](unsigned char (*slots)[fibers::kSlot], int) {
        constexpr int kPer = sizeof(T) == 4 ? 1 : 2;  // elements in a register
        constexpr int kDepth = 8 * kPer;
        float A[16][kDepth], B[kDepth][8];
        MmaOperands lanes[32];
        for (int l = 0; l < 32; ++l) {
          std::memcpy(&lanes[l], slots[l], sizeof(MmaOperands));
          const int g = l / 4, i = l % 4;
          for (int e = 0; e < kPer; ++e) {
            for (int r = 0; r < 4; ++r)
              A[g + 8 * (r % 2)][i * kPer + e + 4 * kPer * (r / 2)] =
                  mma_element<T>(lanes[l].a[r], e);
            for (int r = 0; r < 2; ++r)
              B[i * kPer + e + 4 * kPer * r][g] = mma_element<T>(lanes[l].b[r], e);
          }
        }
        for (int l = 0; l < 32; ++l) {
          for (int r = 0; r < 4; ++r) {
            const int row = l / 4 + 8 * (r / 2), column = 2 * (l % 4) + r % 2;
            float sum = 0;
            for (int k = 0; k < kDepth; ++k) sum += A[row][k] * B[k][column];
            lanes[l].c[r] += sum;
          }
          std::memcpy(slots[l], &lanes[l], sizeof(MmaOperands));
        }
      },
      0);
  std::memcpy(c, own.c, sizeof own.c);
}

}  // namespace fastrnn::cuda
