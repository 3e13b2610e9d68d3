#include "cuda/runtime.h"

#include <cstring>

#include "cuda/build.h"
#if __has_include("cuda_build.h")
#include "cuda_build.h"  // written by cuda_build.py
#else
#define FASTRNN_CUDA_ARCHS ""
#define FASTRNN_KERNELS_HASH "unknown"
#endif

namespace fastrnn::cuda {

const char* architectures() { return FASTRNN_CUDA_ARCHS; }
const char* kernels_hash() { return FASTRNN_KERNELS_HASH; }

const char* text_of(cudaError_t error) { return cudaGetErrorString(error); }
void forget_error() { cudaGetLastError(); }

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

cudaError_t synchronize(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t query(cudaStream_t stream) { return cudaStreamQuery(stream); }

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
}

void* memory_for_all(size_t bytes) {
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable | cudaHostAllocMapped) != cudaSuccess) {
    forget_error();
    return nullptr;
  }
  return std::memset(memory, 0, bytes);
}

OutsideCaptures::OutsideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
OutsideCaptures::~OutsideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }

}  // namespace fastrnn::cuda
