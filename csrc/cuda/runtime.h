// The CUDA runtime's types, or, where the tests compile the kernels for the CPU, their stand-ins;
// and what the operators ask of the runtime. They ask through here because it is part of the
// kernels' library: in a wheel (wheels.py) the operators are a library of their own, from which a
// call of the runtime would reach torch's, of another version and with another current device.
#pragma once

#if defined(FASTRNN_ON_CPU)
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstddef>

namespace fastrnn::cuda {

const char* text_of(cudaError_t error);
void forget_error();  // so that nobody else sees it
int driver_version();

cudaError_t synchronize(cudaStream_t stream);
cudaError_t query(cudaStream_t stream);
// Whether the stream's work is being recorded for a graph.
bool is_capturing(cudaStream_t stream);

// Zeroed memory that the host and every device see; null if there is none. Never freed.
void* memory_for_all(size_t bytes);

// While one exists, nothing that this thread does breaks a capture in another.
class OutsideCaptures {
 public:
  OutsideCaptures();
  ~OutsideCaptures();
  OutsideCaptures(const OutsideCaptures&) = delete;
  OutsideCaptures& operator=(const OutsideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace fastrnn::cuda
