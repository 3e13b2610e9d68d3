// What the kernels of a step share, plain (step.cu) or leaky (leaky.cu).
#pragma once

#include "cuda/math.cuh"

namespace fastrnn::cuda {
namespace {

constexpr int kThreads = 256;

// This thread's number among those of the grid's x and z, which may exceed 2^31.
FASTRNN_DEVICE int64_t thread_number() {
  return (int64_t{blockIdx.z} * gridDim.x + blockIdx.x) * kThreads + threadIdx.x;
}

// Enough blocks for so many threads; the y dimension is the direction.
bool grid_for(int64_t threads, int directions, dim3* grid) {
  constexpr int64_t kWide = 1 << 30;
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks == 0 || blocks > kWide * 65535) return false;
  *grid = dim3(static_cast<unsigned>(blocks < kWide ? blocks : kWide), directions,
               static_cast<unsigned>((blocks + kWide - 1) / kWide));
  return true;
}

// Element i of a product that comes in parts.
template <typename C>
FASTRNN_DEVICE C sum_of(const void* product, int parts, int64_t i, int64_t part) {
  const C* at = static_cast<const C*>(product) + i;
  C sum = *at;
#pragma unroll 4
  for (int n = 1; n < parts; ++n) sum += at[n * part];
  return sum;
}

}  // namespace
}  // namespace fastrnn::cuda
