// The operators on CUDA: the device, its current stream, and what the user has set.
#include "cuda/rnn_cuda.h"

#include <ATen/Context.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "arguments.h"
#include "by_torch.h"
#include "cuda/devices.h"
#include "cuda/gemm.h"
#include "cuda/stack.h"

// Of libtorch_cuda, which is there wherever a CUDA tensor is.
extern "C" [[gnu::weak]] int32_t aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                    void** stream);

namespace fastrnn::cuda {
namespace {

// The kernel that calls are to take, by the name that choose() takes. Names are kept for good: a
// call in another thread may still read the one before.
std::atomic<const std::string*> forced_kernel = [] {
  const char* name = std::getenv("FASTRNN_CUDA_KERNEL");
  return new std::string(name ? name : "");
}();

// While there is one, the input's device is current, for torch and for this library.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& input) : torchs_(input.device()), ours_(input.get_device()) {}

  Context context() const {
    void* stream = nullptr;
    TORCH_CHECK(aoti_torch_get_current_cuda_stream &&
                    aoti_torch_get_current_cuda_stream(ours_.index(), &stream) == 0,
                "rnn: this torch does not tell its current CUDA stream");
    return {static_cast<cudaStream_t>(stream), device_at(ours_.index()), allows_tf32(),
            *forced_kernel};
  }

 private:
  c10::DeviceGuard torchs_;
  CurrentDevice ours_;
};

// Whether cuDNN can take these weights as they are: as flatten_parameters leaves them, in one
// storage. Else it would copy them at each call.
bool are_flat(TensorList weights) {
  return std::all_of(weights.begin(), weights.end(),
                     [&](const Tensor& w) { return w.is_alias_of(weights[0]); });
}

// Whether a call in inference goes to torch's own operator: no kernel of ours runs there, or it is
// chosen. Training stays with ours: cuDNN has no gradients of gradients and no batches of
// gradients.
bool goes_to_torch(FASTRNN_ARGUMENTS) {
  if (!torch_can_serve(input, lengths, reset, dropout_mask)) return false;
  const Shape s = check(FASTRNN_PASS);
  if (!why_no_kernels(input.get_device()).empty()) return true;
  if (!at::globalContext().userEnabledCuDNN() || !are_flat(weights)) return false;
  const OnDevice on_device(input);
  const Context context = on_device.context();
  const Problem problem{dtype_of(input),
                        false,
                        context.tf32,
                        s.seq_len,
                        s.batch,
                        s.hidden_size,
                        static_cast<int>(s.num_directions),
                        true};
  return choose(problem, context.device, context.forced).kernel == Kernel::kTorch;
}

std::tuple<Tensor, Tensor> rnn_cuda(FASTRNN_ARGUMENTS) {
  if (goes_to_torch(FASTRNN_PASS)) return rnn_by_torch(FASTRNN_PASS);
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

std::string set_kernel(const std::string& name) {
  return *forced_kernel.exchange(new std::string(name));
}

std::string kernels_for(const Tensor& like, int64_t seq_len, int64_t batch, int64_t hidden_size,
                        bool bidirectional, bool torch_can_serve) {
  const OnDevice on_device(like);
  const Context context = on_device.context();
  Problem problem{dtype_of(like), false,       context.tf32,          seq_len,
                  batch,          hidden_size, bidirectional ? 2 : 1, torch_can_serve};
  const Choice forward = choose(problem, context.device, context.forced);
  if (forward.kernel == Kernel::kTorch) return name_of(forward);
  problem.backward = true;
  problem.torch_can_serve = false;
  return name_of(forward) + ", backward " +
         name_of(choose(problem, context.device, context.forced));
}

TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("rnn", rnn_cuda);
  m.impl("rnn_forward", rnn_forward_cuda);
  m.impl("rnn_backward", rnn_backward_cuda);
}

}  // namespace fastrnn::cuda
