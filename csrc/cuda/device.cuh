// Everything that the kernels ask of the machine, each behind a small inline function, so that the
// tests can emulate it on the CPU (tests/gpu/on_cpu). A warp's collective functions are called by
// all 32 lanes. PTX ISA 9.0, sections 9.7.9 to 9.7.15.
#pragma once

#include "cuda/recurrence.h"

#if !defined(FASTRNN_ON_CPU)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#define FASTRNN_DEVICE __device__ __forceinline__
#define FASTRNN_KERNEL(threads, blocks) __global__ __launch_bounds__(threads, blocks)

namespace fastrnn::cuda {

// --- Storage types and arithmetic

using Half = __half;
using BFloat16 = __nv_bfloat16;

FASTRNN_DEVICE float widen(float x) { return x; }
FASTRNN_DEVICE double widen(double x) { return x; }
FASTRNN_DEVICE float widen(Half x) { return __half2float(x); }
FASTRNN_DEVICE float widen(BFloat16 x) { return __bfloat162float(x); }
FASTRNN_DEVICE void narrow(float* to, float x) { *to = x; }
FASTRNN_DEVICE void narrow(double* to, double x) { *to = x; }
// Of a pair in one word, the low or the high one.
template <typename S>
FASTRNN_DEVICE S half_of(uint32_t pair, int high) {
  const auto bits = static_cast<unsigned short>(high ? pair >> 16 : pair);
  if constexpr (std::is_same_v<S, Half>) {
    return __ushort_as_half(bits);
  } else {
    return __ushort_as_bfloat16(bits);
  }
}
// As one of a pair: F2FP, where a single conversion may become F2F, of a quarter of its rate.
FASTRNN_DEVICE void narrow(Half* to, float x) { *to = __low2half(__floats2half2_rn(x, 0.0f)); }
FASTRNN_DEVICE void narrow(BFloat16* to, float x) {
  *to = __low2bfloat16(__floats2bfloat162_rn(x, 0.0f));
}

FASTRNN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
FASTRNN_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
// x rounded to TF32, nearest, ties away from zero; NaN and infinity stay.
FASTRNN_DEVICE uint32_t tf32_of(float x) {
#if __CUDA_ARCH__ >= 800
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
#else
  return bits_of(x);
#endif
}
// 2^x, to 2 ulp; 1 / x, to 1 ulp, where x >= 2^-126; 0 where x > 2^126.
FASTRNN_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FASTRNN_DEVICE float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// tanh(x), to a relative error of 2^-11: one instruction.
FASTRNN_DEVICE float fast_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x, hidden from the compiler: what is computed from it is not moved out of a loop, where it would
// take registers.
FASTRNN_DEVICE uint32_t unknown(uint32_t x) {
  asm("" : "+r"(x));
  return x;
}
// p, which points to global memory, plus so many bytes; hidden too, for the compiler splits
// advancing pointers into sums of parts, each with registers and instructions of its own.
template <typename T>
FASTRNN_DEVICE T* further(T* p, int64_t bytes) {
  size_t address = __cvta_generic_to_global(p) + bytes;
  asm("" : "+l"(address));
  return static_cast<T*>(__cvta_global_to_generic(address));
}

// *p if it is there, else 0, by a predicate: with a branch, which the compiler would make of the
// condition, each load would wait for the one before.
template <typename T>
FASTRNN_DEVICE uint32_t load_bits(const T* p, bool there) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4);
  const size_t from = __cvta_generic_to_global(p);
  uint32_t x;
  if constexpr (sizeof(T) == 4) {
    asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.global.u32 %0, [%1]; }"
        : "=r"(x)
        : "l"(from), "r"(uint32_t{there}));
  } else {
    asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.global.u16 %0, [%1]; }"
        : "=r"(x)
        : "l"(from), "r"(uint32_t{there}));
  }
  return x;
}

// --- A block's threads

// The block's dynamic shared memory, 128-byte aligned.
template <typename T>
FASTRNN_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char fastrnn_shared[];
  return reinterpret_cast<T*>(fastrnn_shared);
}

FASTRNN_DEVICE void block_sync() { __syncthreads(); }
FASTRNN_DEVICE void warp_sync() { __syncwarp(); }

template <typename T>
FASTRNN_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// --- Shared memory, also of the other blocks of a cluster

using SharedAddress = uint32_t;  // in the cluster's window; may be added to

FASTRNN_DEVICE SharedAddress shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// What each step reads and writes, by name, as the tests count what its banks have to do.
template <typename T>
FASTRNN_DEVICE T load_shared(const T* p) {
  return *p;
}
template <typename T>
FASTRNN_DEVICE void store_shared(T* p, T x) {
  *p = x;
}

// Four 8 x 8 matrices of 16-bit elements: lane l gives the 16-byte aligned row l % 8 of matrix
// l / 8; to[m] is row lane / 4, columns 2 * (lane % 4) and the next, of matrix m.
FASTRNN_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed: to[m] is column lane / 4, rows 2 * (lane % 4) and the next.
FASTRNN_DEVICE void load_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of two matrices; lanes 0 to 15 give the rows.
FASTRNN_DEVICE void load_transposed(uint32_t (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(shared_address(row))
               : "memory");
}

// Copies kBytes (4, 8 or 16, aligned) from global to shared memory in the background, or zeros
// if not `valid`; visible to this thread after wait_copies.
template <int kBytes>
FASTRNN_DEVICE void copy_async(void* to, const void* from, bool valid = true) {
#if __CUDA_ARCH__ >= 800
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                 "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
  }
#else
  for (int i = 0; i < kBytes / 4; ++i)
    static_cast<uint32_t*>(to)[i] = valid ? static_cast<const uint32_t*>(from)[i] : 0;
#endif
}
// Closes a group of this thread's copies.
FASTRNN_DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for all of this thread's groups but the last kGroups.
template <int kGroups>
FASTRNN_DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// --- The clock, and memory that the host sees while a kernel runs

FASTRNN_DEVICE uint32_t clocks() {
  uint32_t x;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(x)::"memory");
  return x;
}
FASTRNN_DEVICE uint32_t load_volatile(const uint32_t* p) {
  return *static_cast<const volatile uint32_t*>(p);
}
FASTRNN_DEVICE void store_volatile(GaveUp* p, const GaveUp& x) {
  asm volatile("st.volatile.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.yes), "r"(x.block),
               "r"(x.thread), "r"(x.exchange)
               : "memory");
}

// --- Barriers in shared memory (sm_90): a phase ends when `count` arrivals and all announced bytes
// have come. Waiters name the phase by its parity: 0 for the first.

using SharedBarrier = uint64_t;

FASTRNN_DEVICE void init_barrier(SharedBarrier* barrier, int count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
#endif
}
// Makes the barriers that this thread has initialized known to the cluster, with the cluster_arrive
// and cluster_wait that follow.
FASTRNN_DEVICE void publish_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Announces bytes of store_async in this phase, and arrives.
FASTRNN_DEVICE void arrive_expecting(SharedBarrier* barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}
// Waiting acquires what the arrivals at the phase released and what store_async wrote: shared
// memory of this block, all of it, whoever wrote it. The default scope is the block. An acquire of
// the cluster's scope, as the PTX model wants it where another block's threads wrote, empties the
// L1 cache at each wait (CCTL.IVALL), and fence.acquire.sync_restrict waits for every load that is
// on its way; store_async's bytes are counted at this block's barrier after they are there.
#define FASTRNN_TRY_WAIT "mbarrier.try_wait.parity.shared::cta.b64"
// Whether the phase of this parity is over; may wait a while.
FASTRNN_DEVICE bool try_wait(SharedBarrier* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done;
  asm volatile("{ .reg .pred p; " FASTRNN_TRY_WAIT " p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
#else
  return true;
#endif
}

// --- Clusters (sm_90)

FASTRNN_DEVICE int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}
// The address of the same place in the shared memory of another block of the cluster.
FASTRNN_DEVICE SharedAddress map_shared(const void* p, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
#else
  return shared_address(p);
#endif
}
// Orders nothing: publish_barriers does, and nothing else passes this way. (With .release it would
// wait until the whole GPU sees this thread's writes.)
FASTRNN_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
FASTRNN_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
FASTRNN_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// Writes 4, 8 or 16 bytes (aligned) to the shared memory of a block of the cluster, and then tells
// that block's barrier that so many bytes have come.
FASTRNN_DEVICE void store_async(SharedAddress to, uint32_t x, SharedAddress barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
      "r"(x), "r"(barrier)
      : "memory");
#endif
}
FASTRNN_DEVICE void store_async(SharedAddress to, uint2 x, SharedAddress barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::
          "r"(to),
      "r"(x.x), "r"(x.y), "r"(barrier)
      : "memory");
#endif
}
FASTRNN_DEVICE void store_async(SharedAddress to, uint4 x, SharedAddress barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
      : "memory");
#endif
}

// --- Between blocks, through L2

FASTRNN_DEVICE void add_release(uint32_t* p, uint32_t x) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
FASTRNN_DEVICE void atomic_max(uint64_t* p, uint64_t x) {
  static_assert(sizeof(unsigned long long) == sizeof *p);
  atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}
[[noreturn]] FASTRNN_DEVICE void fail() {
  __trap();
  __builtin_unreachable();
}

// --- Launches

struct Launch {
  dim3 grid;
  int threads;
  int shared_bytes;
  cudaStream_t stream;
  int cluster = 1;  // blocks along x
};

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, Parameters... arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  constexpr int kWithoutAsking = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (how.shared_bytes > kWithoutAsking)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 how.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute clusters;
  clusters.id = cudaLaunchAttributeClusterDimension;
  clusters.val.clusterDim = {static_cast<unsigned>(how.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = &clusters;
  config.numAttrs = how.cluster > 1 ? 1 : 0;
  void* pointers[] = {&arguments...};
  return cudaLaunchKernelExC(&config, function, pointers);
}

}  // namespace fastrnn::cuda

#endif  // FASTRNN_ON_CPU
