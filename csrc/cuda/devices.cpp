#include "cuda/devices.h"

#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <array>
#include <mutex>
#include <vector>

#include "cuda/occupancy.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {
namespace {

void check_cuda(cudaError_t error, const char* what) {
  TORCH_CHECK(error == cudaSuccess, "rnn: ", what, " failed: ", cudaGetErrorString(error));
}

int attribute(int index, cudaDeviceAttr which) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
  return value;
}

struct Known {
  std::once_flag once;
  std::string why_no_kernels;
  Device device;
  std::vector<int> groups_at_once;
};

int capability_of(int index) {
  return 10 * attribute(index, cudaDevAttrComputeCapabilityMajor) +
         attribute(index, cudaDevAttrComputeCapabilityMinor);
}

// Of an error; other errors say nothing about the device and are thrown.
std::string why_no_kernels(cudaError_t error, int index) {
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return "no kernel for sm_" + std::to_string(capability_of(index)) +
             " in this build, which has " + architectures();
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorInvalidPtx:
      return std::string("the driver does not run this build: ") + cudaGetErrorString(error);
    default:
      check_cuda(error, "looking for kernels");
      return "";
  }
}

void read(Known& known, int index) {
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess) {
    const c10::DeviceGuard torchs({c10::kCUDA, static_cast<c10::DeviceIndex>(index)});
    const CurrentDevice current(index);
    error = probe_kernels();
    if (error == cudaSuccess) {
      known.device = {capability_of(index), attribute(index, cudaDevAttrMultiProcessorCount),
                      attribute(index, cudaDevAttrMaxSharedMemoryPerBlockOptin),
                      attribute(index, cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                      attribute(index, cudaDevAttrMaxRegistersPerMultiprocessor)};
      known.groups_at_once.resize(kConfigurations.size());
      for (const Choice& c : configurations())
        known.groups_at_once[c.configuration] = groups_at_once(c, known.device);
      known.device.groups_at_once = known.groups_at_once.data();
      return;
    }
  }
  cudaGetLastError();  // so that nobody else finds it
  known.why_no_kernels = why_no_kernels(error, index);
}

const Known& known_at(int index) {
  constexpr int kMost = 64;
  static std::array<Known, kMost> all;
  TORCH_CHECK(index >= 0 && index < kMost, "rnn: expected a device below ", kMost, ", got ", index);
  std::call_once(all[index].once, [&] { read(all[index], index); });
  return all[index];
}

}  // namespace

const char* architectures() { return FASTRNN_CUDA_ARCHS; }

const Device& device_at(int index) {
  const Known& known = known_at(index);
  TORCH_CHECK(known.why_no_kernels.empty(), "rnn: ", known.why_no_kernels);
  return known.device;
}

const std::string& why_no_kernels(int index) { return known_at(index).why_no_kernels; }

CurrentDevice::CurrentDevice(int index) : index_(index) {
  check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != index_) check_cuda(cudaSetDevice(index_), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() {
  if (before_ != index_) cudaSetDevice(before_);
}

}  // namespace fastrnn::cuda
