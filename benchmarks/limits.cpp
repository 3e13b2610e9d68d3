// The limits that results are held against: the peak of multiply-adds, and a module call that
// computes nothing.
#include <torch/extension.h>

#include <chrono>

namespace {

// Independent chains of multiply-adds in registers: enough of them to cover the latency, few enough
// not to spill. A function for each instruction set, for vectors are lowered before a template
// could be inlined into its caller.
#define FMA_CHAINS(name, attribute, bytes, chains)                              \
  attribute float name(int64_t steps, float factor) {                           \
    typedef float Vector __attribute__((vector_size(bytes)));                   \
    Vector sums[chains], f = Vector{} + factor, addend = Vector{} + 1e-3f;      \
    for (int c = 0; c < chains; ++c) sums[c] = f + static_cast<float>(c);       \
    for (int64_t i = 0; i < steps; ++i) {                                       \
      _Pragma("GCC unroll 16") for (Vector& sum : sums) sum = sum * f + addend; \
    }                                                                           \
    for (Vector& sum : sums) sums[0] += sum;                                    \
    return sums[0][0];                                                          \
  }

#if defined(__x86_64__)
FMA_CHAINS(chains_avx512, __attribute__((target("avx512f,prefer-vector-width=512"))), 64, 12)
FMA_CHAINS(chains_avx2, __attribute__((target("avx2,fma"))), 32, 12)
#endif
FMA_CHAINS(chains_baseline, , 16, 12)  // on x86-64 a multiplication and an addition

double fma_gflops(const std::string& instruction_set) {
  constexpr int64_t kSteps = 200'000;
  float (*chains)(int64_t, float) = chains_baseline;
  int64_t lanes = 4;
#if defined(__x86_64__)
  if (instruction_set == "avx2") chains = chains_avx2, lanes = 8;
  if (instruction_set == "avx512") chains = chains_avx512, lanes = 16;
#endif
  volatile float factor = 0.999f;
  const auto start = std::chrono::steady_clock::now();
  volatile float result = chains(kSteps, factor);
  (void)result;
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
  return 2.0 * kSteps * 12 * lanes / elapsed.count();
}

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

variable_list outputs(const Tensor& input, const Tensor& hx) {
  return {at::empty({input.size(0), input.size(1), hx.size(2)}, input.options()),
          at::empty_like(hx)};
}

// Takes and returns what an RNN does, with a gradient for each argument, and computes nothing.
struct EmptyFunction : torch::autograd::Function<EmptyFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& hx,
                               at::TensorList weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list kept{input, hx};
    kept.insert(kept.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(kept));
    ctx->set_materialize_grads(false);
    return outputs(input, hx);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    variable_list grads;
    for (const Tensor& x : ctx->get_saved_variables()) grads.push_back(at::empty_like(x));
    return grads;
  }
};

std::tuple<Tensor, Tensor> empty(const Tensor& input, const Tensor& hx,
                                 const std::vector<Tensor>& weights) {
  const variable_list results = at::GradMode::is_enabled()
                                    ? EmptyFunction::apply(input, hx, at::TensorList(weights))
                                    : outputs(input, hx);
  return {results[0], results[1]};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("fma_gflops", fma_gflops);
  m.def("empty", empty);
}
