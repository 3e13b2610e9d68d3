// The operators on CUDA: the device, its current stream, and what the user has set.
#include "cuda/rnn_cuda.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>

#include "arguments.h"
#include "by_torch.h"
#include "cuda/devices.h"
#include "cuda/gemm.h"
#include "cuda/occupancy.h"
#include "cuda/stack.h"
#include "cuda/torch_cuda.h"

namespace fastrnn::cuda {
namespace {

// The kernel that calls are to take, by the name that choose() takes. Names are kept for good: a
// call in another thread may still read the one before.
std::atomic<const std::string*> forced_kernel = [] {
  const char* name = std::getenv("FASTRNN_CUDA_KERNEL");
  return new std::string(name ? name : "");
}();

// While one exists, the input's device is current for torch, and so for the driver; this library's
// own runtime is told too.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& input) : index_(index_of(input)), torchs_(input.device()) {
    const cudaError_t error = make_current(index_);
    TORCH_CHECK(error == cudaSuccess, "rnn: cudaSetDevice failed: ", text_of(error));
  }

  Context context() const {
    Guard& guard = guard_at(index_);
    TORCH_CHECK(guard.why_not().empty(), "rnn: ", guard.why_not());
    void* stream = nullptr;
    TORCH_CHECK(torch_cuda().current_stream(index_, &stream) == 0,
                "rnn: cannot get the current CUDA stream from this version of torch");
    return {static_cast<cudaStream_t>(stream), guard.device(), allows_tf32(), *forced_kernel,
            &guard};
  }

 private:
  static int index_of(const Tensor& input) {
    TORCH_CHECK(input.is_cuda(), "rnn: expected input on a CUDA device, like the weights, got ",
                input.device());
    return input.get_device();
  }

  int index_;
  c10::DeviceGuard torchs_;
};

// Whether cuDNN can take these weights as they are: as flatten_parameters leaves them, in one
// storage. Else it would copy them at each call.
bool are_flat(TensorList weights) {
  return std::all_of(weights.begin(), weights.end(),
                     [&](const Tensor& w) { return w.is_alias_of(weights[0]); });
}

// Whether a call in inference goes to torch's own operator: no kernel of ours serves it, or it is
// faster, by choose() or, with torch.backends.cudnn.benchmark, as measured.
bool goes_to_torch(FASTRNN_ARGUMENTS) {
  if (!torch_can_serve(input, lengths, reset, dropout_mask)) return false;
  const Shape s = check(FASTRNN_PASS);
  if (!why_no_kernels(input.get_device()).empty()) return true;
  const OnDevice on_device(input);
  const Context context = on_device.context();
  Problem problem = problem_of(dtype_of(input), s, context, hx.has_value(), false);
  problem.torch_can_serve = at::globalContext().userEnabledCuDNN() && are_flat(weights);
  problem.packed = batch_sizes.has_value();
  if (allowed_choice(problem, context, true).kernel == Kernel::kTorch) return true;
  if (!at::globalContext().benchmarkCuDNN() || !context.forced.empty()) return false;
  // Sizes that vary share a timing if they round up to the same power of two.
  const auto rounded = [](int64_t x) { return static_cast<int64_t>(std::bit_ceil<uint64_t>(x)); };
  const std::vector<int64_t> key{rounded(s.seq_len),
                                 rounded(s.batch),
                                 rounded(s.rows),
                                 s.input_size,
                                 s.hidden_size,
                                 s.num_layers,
                                 s.num_directions,
                                 static_cast<int64_t>(problem.dtype),
                                 problem.torch_can_serve,
                                 has_biases,
                                 context.tf32};
  return context.guard->is_faster(
      key, context.stream, [&] { rnn_by_torch(FASTRNN_PASS); },
      [&] { forward(context, FASTRNN_PASS, false); });
}

// Whether a call in training goes there: only if none of our kernels serves, or none can be checked
// because the stream is capturing. Else it stays with ours, by steps if need be: cuDNN has no
// gradients of gradients and no batches of gradients.
bool goes_to_torch_in_training(FASTRNN_ARGUMENTS) {
  if (!input.is_cuda() || !torch_can_serve(input, lengths, reset, dropout_mask) ||
      c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Python))
    return false;
  if (!why_no_kernels(input.get_device()).empty()) return true;
  if (*forced_kernel.load() == name_of(Kernel::kTorch)) return true;
  const OnDevice on_device(input);
  const Context context = on_device.context();
  if (!context.forced.empty() || !is_capturing(context.stream)) return false;
  const Shape s = check(FASTRNN_PASS);
  const auto serves = [&](bool backward) {
    const Problem problem = problem_of(dtype_of(input), s, context, hx.has_value(), backward);
    return context.guard->serves({choose(problem, context.device), problem.dtype}, context.stream);
  };
  return !serves(false) || !serves(true);
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

std::tuple<Tensor, Tensor, Tensor> rnn_extended_cuda(FASTRNN_ARGUMENTS, FASTRNN_EXTRAS) {
  const OnDevice on_device(input);
  return forward_extended(on_device.context(), FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_extended_forward_cuda(FASTRNN_ARGUMENTS,
                                                                     FASTRNN_EXTRAS) {
  const OnDevice on_device(input);
  return forward_extended_and_save(on_device.context(), FASTRNN_PASS, FASTRNN_PASS_EXTRAS);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor> rnn_extended_backward_cuda(
    const OptionalTensor& grad_output, const OptionalTensor& grad_hn,
    const OptionalTensor& grad_layers, const Tensor& saved, FASTRNN_ARGUMENTS, FASTRNN_EXTRAS,
    bool want_input, bool want_hx, bool want_weights, bool want_gates, bool want_alpha) {
  const OnDevice on_device(input);
  return backward_extended(on_device.context(), grad_output, grad_hn, grad_layers, saved,
                           FASTRNN_PASS, FASTRNN_PASS_EXTRAS, want_input, want_hx, want_weights,
                           want_gates, want_alpha);
}

}  // namespace

std::string set_kernel(const std::string& name) {
  return *forced_kernel.exchange(new std::string(name));
}

std::string kernels_for(const Tensor& like, int64_t seq_len, int64_t batch, int64_t hidden_size,
                        bool bidirectional, bool has_hx, bool trains, bool drops) {
  const OnDevice on_device(like);
  const Context context = on_device.context();
  const bool torch_can_serve = !trains && !drops;
  Problem problem{.dtype = dtype_of(like),
                  .backward = false,
                  .tf32 = context.tf32,
                  .seq_len = seq_len,
                  .batch = batch,
                  .hidden_size = hidden_size,
                  .num_directions = bidirectional ? 2 : 1,
                  .has_hx = has_hx,
                  .torch_can_serve = torch_can_serve};
  const Choice chosen = choose(problem, context.device, context.forced),
               taken = allowed_choice(problem, context, torch_can_serve);
  if (taken.kernel == Kernel::kTorch) {
    if (chosen.kernel == Kernel::kTorch) return "torch (cuDNN is chosen for steps of this size)";
    return "torch (" + context.guard->why_not({chosen, problem.dtype}, context.stream) + ")";
  }
  problem.backward = true;
  problem.torch_can_serve = false;
  return name_of(taken) + ", backward " + name_of(allowed_choice(problem, context, false));
}

std::vector<Checked> check_kernels(const Tensor& like) {
  const OnDevice on_device(like);
  const Context context = on_device.context();
  constexpr at::ScalarType kTypes[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
  std::vector<Checked> all;
  for (const Variant& v : variants(context.device)) {
    const Tensor workspace = at::empty({check_bytes(v)}, like.options().dtype(at::kByte));
    for (const Trial& trial : kTrials) {
      const Verdict found = check_variant(v, trial, workspace.mutable_data_ptr(), context.stream);
      all.push_back({name_of(v.choice), kTypes[static_cast<int>(v.dtype)], trial.name, found.worst,
                     found.allowed, found.fault()});
      if (found.timed_out || query(context.stream) != cudaSuccess) return all;
    }
  }
  return all;
}

TORCH_LIBRARY_IMPL(fastrnn, AutogradCUDA, m) {
  m.impl("rnn",
         [](FASTRNN_ARGUMENTS) { return rnn_autograd(FASTRNN_PASS, goes_to_torch_in_training); });
}
TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("rnn", rnn_cuda);
  m.impl("rnn_forward", rnn_forward_cuda);
  m.impl("rnn_backward", rnn_backward_cuda);
  m.impl("rnn_extended", rnn_extended_cuda);
  m.impl("rnn_extended_forward", rnn_extended_forward_cuda);
  m.impl("rnn_extended_backward", rnn_extended_backward_cuda);
}

}  // namespace fastrnn::cuda
