// The operators on CUDA: the device, its current stream, and what the user has set.
#include "cuda/rnn_cuda.h"

#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "checks.h"
#include "cuda/gemm.h"
#include "cuda/occupancy.h"
#include "cuda/stack.h"

// Of libtorch_cuda, which is there wherever a CUDA tensor is.
extern "C" [[gnu::weak]] int32_t aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                    void** stream);

namespace fastrnn::cuda {
namespace {

void check_cuda(cudaError_t error, const char* what) {
  TORCH_CHECK(error == cudaSuccess, "rnn: ", what, " failed: ", cudaGetErrorString(error));
}

Device read_device(int index) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) +
              attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrMaxRegistersPerMultiprocessor)};
}

// What choose() asks of a device, read once; the device is current.
const Device& device_at(int index) {
  struct Known {
    std::once_flag once;
    Device device;
    std::vector<int> groups_at_once;
  };
  constexpr int kMost = 64;
  static std::array<Known, kMost> all;
  TORCH_CHECK(index >= 0 && index < kMost, "rnn: expected a device below ", kMost, ", got ", index);
  Known& known = all[index];
  std::call_once(known.once, [&] {
    known.device = read_device(index);
    known.groups_at_once.resize(kConfigurations.size());
    for (const Choice& c : configurations())
      known.groups_at_once[c.configuration] = groups_at_once(c, known.device);
    known.device.groups_at_once = known.groups_at_once.data();
  });
  return known.device;
}

// The kernel that calls are to take, by the name that choose() takes. Names are kept for good: a
// call in another thread may still read the one before.
std::atomic<const std::string*> forced_kernel = [] {
  const char* name = std::getenv("FASTRNN_CUDA_KERNEL");
  return new std::string(name ? name : "");
}();

// While there is one, the input's device is current, for torch and for this library, which has a
// CUDA runtime of its own.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& input) : guard_(input.device()), index_(input.device().index()) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != index_) check_cuda(cudaSetDevice(index_), "cudaSetDevice");
  }
  ~OnDevice() {
    if (before_ != index_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  Context context() const {
    void* stream = nullptr;
    TORCH_CHECK(aoti_torch_get_current_cuda_stream &&
                    aoti_torch_get_current_cuda_stream(index_, &stream) == 0,
                "rnn: this torch does not tell its current CUDA stream");
    return {static_cast<cudaStream_t>(stream), device_at(index_), allows_tf32(), *forced_kernel};
  }

 private:
  c10::DeviceGuard guard_;
  int index_, before_ = 0;
};

std::tuple<Tensor, Tensor> rnn_cuda(FASTRNN_ARGUMENTS) {
  const OnDevice on_device(input);
  auto [output, hn, nothing] = forward(on_device.context(), FASTRNN_PASS, false);
  return {output, hn};
}

std::tuple<Tensor, Tensor, Tensor> rnn_forward_cuda(FASTRNN_ARGUMENTS, bool save) {
  const OnDevice on_device(input);
  return forward(on_device.context(), FASTRNN_PASS, save);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> rnn_backward_cuda(
    const OptionalTensor& grad_output, const OptionalTensor& grad_hn, const Tensor& saved,
    FASTRNN_ARGUMENTS, bool want_input, bool want_hx, bool want_weights) {
  const OnDevice on_device(input);
  return backward(on_device.context(), grad_output, grad_hn, saved, FASTRNN_PASS, want_input,
                  want_hx, want_weights);
}

}  // namespace

const char* architectures() { return FASTRNN_CUDA_ARCHS; }

std::string set_kernel(const std::string& name) {
  return *forced_kernel.exchange(new std::string(name));
}

std::string kernels_for(const Tensor& like, int64_t seq_len, int64_t batch, int64_t hidden_size,
                        bool bidirectional) {
  const OnDevice on_device(like);
  const Context context = on_device.context();
  Problem problem{dtype_of(like), false,       context.tf32,         seq_len,
                  batch,          hidden_size, bidirectional ? 2 : 1};
  const std::string forward = name_of(choose(problem, context.device, context.forced));
  problem.backward = true;
  return forward + ", backward " + name_of(choose(problem, context.device, context.forced));
}

TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("rnn", rnn_cuda);
  m.impl("rnn_forward", rnn_forward_cuda);
  m.impl("rnn_backward", rnn_backward_cuda);
}

}  // namespace fastrnn::cuda
