// What the CUDA half takes of the CUDA runtime, on the CPU, and what a test wants to go wrong.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};
struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotReady = 600,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912
};
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3, cudaMemcpyDefault = 4 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;

// What a test wants to go wrong with the device.
struct Planted {
  cudaError_t of_launches = cudaSuccess;  // of kernels in clusters, which then do not run
  cudaError_t of_device = cudaSuccess;    // of all that follows such a kernel, or of nothing
  int hang = 0;                           // at this exchange, from 1, the blocks of a cluster wait
                                          // for bytes that nobody sends
  bool endless = false;                   // what such a kernel begins never ends
  bool capturing = false;                 // every stream is
  const char* spoiled = "";               // what spoil() does (cuda_on_cpu.h)
  const char* missing = "";               // a call of the kernels that does nothing...
  bool missed = false;                    // ...and has come
  bool together = false;                  // the clusters of a launch run at a time, not in turn
  int least_ulps = 0, most_ulps = 0;      // off by which fast_exp2 and fast_reciprocal are
  bool poisoned = false;                  // of_device has come
  int captured = 0;                       // kernels that were launched while capturing
  int64_t copies = 0;                     // that threads have begun in the background
  int launches = 0;                       // of kernels and of cuBLAS's products
  int handles = 0;                        // how often torch was asked for cuBLAS's handle
};
inline Planted planted;

inline const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "no error";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidClusterSize:
      return "invalid cluster size";
    default:
      return "invalid argument";
  }
}
inline cudaError_t device_state() { return planted.poisoned ? planted.of_device : cudaSuccess; }
inline cudaError_t cudaGetLastError() { return device_state(); }
inline cudaError_t cudaStreamQuery(cudaStream_t) {
  return planted.poisoned && planted.endless ? cudaErrorNotReady : device_state();
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return device_state(); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return device_state();
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  std::memset(to, byte, bytes);
  return device_state();
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = planted.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return device_state();
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  *p = std::calloc(1, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
