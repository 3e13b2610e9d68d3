#include "cuda/devices.h"

#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <array>
#include <mutex>
#include <optional>
#include <vector>

#include "cuda/build.h"
#include "cuda/occupancy.h"
#include "cuda/rnn_cuda.h"
#include "cuda/torch_cuda.h"

namespace fastrnn::cuda {
namespace {

// What an error says about the device; errors that say nothing about it are thrown.
std::string why_no_kernels(cudaError_t error, int capability) {
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return "no kernel for sm_" + std::to_string(capability) + " in this build, which has " +
             architectures();
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorInvalidPtx:
      return std::string("the driver cannot run this build: ") + text_of(error);
    default:
      TORCH_CHECK(false, "rnn: looking for kernels failed: ", text_of(error));
  }
}

// What is known about a device, once it has been read.
struct Known {
  std::once_flag once;
  std::vector<int> groups_at_once;
  std::optional<Guard> guard;

  void read(int index);
};

void Known::read(int index) {
  if (!torch_cuda().missing.empty()) {
    guard.emplace("this torch lacks " + torch_cuda().missing);
    return;
  }
  const OutsideCaptures outside;
  const at::Device torchs(at::kCUDA, static_cast<at::DeviceIndex>(index));
  const c10::DeviceGuard on_device(torchs);
  Device device{};
  std::string name;
  const cudaError_t error = describe(index, &device, &groups_at_once, &name);
  if (error == cudaSuccess) {
    guard.emplace(name, torchs, device, checks_from_environment());
  } else {
    forget_error();
    guard.emplace(why_no_kernels(error, device.capability));
  }
}

}  // namespace

Guard& guard_at(int index) {
  constexpr int kMost = 64;
  static auto& all = *new std::array<Known, kMost>;  // never destroyed: threads may outlive it
  TORCH_CHECK(index >= 0 && index < kMost, "rnn: expected a device index below ", kMost, ", got ",
              index);
  Known& known = all[index];
  std::call_once(known.once, [&] { known.read(index); });
  return *known.guard;
}

const std::string& why_no_kernels(int index) { return guard_at(index).why_not(); }

}  // namespace fastrnn::cuda
