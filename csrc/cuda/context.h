// Where and how a call runs.
#pragma once

#include <string>

#include "cuda/choose.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

class Guard;

struct Context {
  cudaStream_t stream;
  Device device;
  bool tf32;               // whether float32 products may use TF32
  std::string forced;      // a kernel's name, as choose() takes it
  Guard* guard = nullptr;  // null: every kernel serves
};

// While there is one, what this thread does cannot break a capture in another.
class OutsideCaptures {
 public:
  OutsideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  OutsideCaptures(const OutsideCaptures&) = delete;
  OutsideCaptures& operator=(const OutsideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Whether the stream's work is being recorded for a graph.
bool is_capturing(cudaStream_t stream);

}  // namespace fastrnn::cuda
