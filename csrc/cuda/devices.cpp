#include "cuda/devices.h"

#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>
#include <vector>

#include "cuda/context.h"
#include "cuda/occupancy.h"
#include "cuda/rnn_cuda.h"
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

// What a device has, and the room for what is kept of it.
struct Known {
  std::once_flag once;
  std::vector<int> groups_at_once;
  std::optional<Guard> guard;

  void read(int index);
};

void Known::read(int index) {
  const OutsideCaptures outside;
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess) {
    const at::Device torchs(at::kCUDA, static_cast<at::DeviceIndex>(index));
    const c10::DeviceGuard on_device(torchs);
    make_current(index);
    int by_driver = 0;
    error = probe_kernels(&by_driver);
    if (error == cudaSuccess) {
      Device device{capability_of(index), attribute(index, cudaDevAttrMultiProcessorCount),
                    attribute(index, cudaDevAttrMaxSharedMemoryPerBlockOptin),
                    attribute(index, cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                    attribute(index, cudaDevAttrMaxRegistersPerMultiprocessor)};
      device.compiled_for = compiled_for(device.capability, architectures());
      if (by_driver > 0) device.compiled_for = std::min(device.compiled_for, by_driver);
      groups_at_once.resize(kConfigurations.size());
      for (const Choice& c : configurations())
        groups_at_once[c.configuration] = cuda::groups_at_once(c, device);
      device.groups_at_once = groups_at_once.data();
      cudaDeviceProp properties{};
      check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
      guard.emplace(properties.name, torchs, device, checks_from_environment());
      return;
    }
  }
  cudaGetLastError();  // so that nobody else finds it
  guard.emplace(why_no_kernels(error, index));
}

}  // namespace

const char* architectures() { return FASTRNN_CUDA_ARCHS; }

Guard& guard_at(int index) {
  constexpr int kMost = 64;
  static auto& all = *new std::array<Known, kMost>;  // threads may outlive what is destroyed
  TORCH_CHECK(index >= 0 && index < kMost, "rnn: expected a device below ", kMost, ", got ", index);
  Known& known = all[index];
  std::call_once(known.once, [&] { known.read(index); });
  return *known.guard;
}

const std::string& why_no_kernels(int index) { return guard_at(index).why_not(); }

void make_current(int index) {
  int before = 0;
  check_cuda(cudaGetDevice(&before), "cudaGetDevice");
  if (before != index) check_cuda(cudaSetDevice(index), "cudaSetDevice");
}

}  // namespace fastrnn::cuda
