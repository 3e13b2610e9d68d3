// The GPUs of this process: what choose() asks of one, and whether this build has kernels for it.
#pragma once

#include <string>

#include "cuda/choose.h"
#include "ops.h"

namespace fastrnn::cuda {

// The machine code in this build, such as "sm_80 sm_90a".
FASTRNN_API const char* architectures();

// Read once. Throws where no kernel of this build runs on the device.
const Device& device_at(int index);

// Why no kernel of this build runs on the device; empty if they do.
FASTRNN_API const std::string& why_no_kernels(int index);

// While there is one, the device is current for the CUDA runtime of this library, which is not
// torch's.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  int index() const { return index_; }

 private:
  int index_, before_ = 0;
};

}  // namespace fastrnn::cuda
