// The product of tensor cores: device.cuh's part for the kernels that use them.
#pragma once

#include "cuda/device.cuh"

#if !defined(FASTRNN_ON_CPU)

namespace fastrnn::cuda {

// c (16 x 8, float32) += a (16 x k) @ b (k x 8). With g = lane / 4, i = lane % 4:
//   c[0], c[1] are (g, 2i), (g, 2i+1); c[2], c[3] are (g+8, 2i), (g+8, 2i+1)
//   16-bit, k = 16: a[0] is (g, 2i..2i+1), a[1] (g+8, same); a[2], a[3] have 8 more columns;
//                   b[0] is (2i..2i+1, g), b[1] has 8 more rows
//   TF32, k = 8:    a[0] is (g, i), a[1] (g+8, i), a[2] (g, i+4), a[3] (g+8, i+4);
//                   b[0] is (i, g), b[1] (i+4, g)

template <typename T>
FASTRNN_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
FASTRNN_DEVICE void mma<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}

template <>
FASTRNN_DEVICE void mma<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // never chosen
#endif
}

template <>
FASTRNN_DEVICE void mma<float>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // never chosen
#endif
}

}  // namespace fastrnn::cuda

#endif  // FASTRNN_ON_CPU
