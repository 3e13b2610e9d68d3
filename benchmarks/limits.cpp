// The limits that results are held against: the peak of multiply-adds, the speed of memory, and a
// call that computes nothing.
#include <torch/extension.h>

#include <chrono>

namespace {

// fma_...: independent chains of multiply-adds in registers, enough of them to cover the latency,
// few enough not to spill. read_...: the sum of memory, four vectors at a time from each of two
// halves. A function for each instruction set, for vectors are lowered before a template could be
// inlined into its caller.
#define FASTRNN_LIMITS(name, attribute, bytes)                                  \
  attribute float fma_##name(int64_t steps, float factor) {                     \
    typedef float Vector __attribute__((vector_size(bytes)));                   \
    Vector sums[kChains], f = Vector{} + factor, addend = Vector{} + 1e-3f;     \
    for (int c = 0; c < kChains; ++c) sums[c] = f + static_cast<float>(c);      \
    for (int64_t i = 0; i < steps; ++i) {                                       \
      _Pragma("GCC unroll 16") for (Vector& sum : sums) sum = sum * f + addend; \
    }                                                                           \
    for (Vector& sum : sums) sums[0] += sum;                                    \
    return sums[0][0];                                                          \
  }                                                                             \
  attribute float read_##name(const float* x, int64_t size) {                   \
    typedef float Vector __attribute__((vector_size(bytes), aligned(4)));       \
    const auto* low = reinterpret_cast<const Vector*>(x);                       \
    const int64_t half = size * 4 / bytes / 8 * 4;                              \
    Vector sums[8] = {};                                                        \
    for (int64_t i = 0; i < half; i += 4) {                                     \
      _Pragma("GCC unroll 4") for (int c = 0; c < 4; ++c) {                     \
        sums[c] += low[i + c];                                                  \
        sums[c + 4] += low[half + i + c];                                       \
      }                                                                         \
    }                                                                           \
    for (Vector& sum : sums) sums[0] += sum;                                    \
    return sums[0][0];                                                          \
  }

constexpr int kChains = 12;
#if defined(__x86_64__)
FASTRNN_LIMITS(avx512, __attribute__((target("avx512f,prefer-vector-width=512"))), 64)
FASTRNN_LIMITS(avx2, __attribute__((target("avx2,fma"))), 32)
#endif
FASTRNN_LIMITS(baseline, , 16)  // on x86-64 a multiplication and an addition

struct Limits {
  float (*fma)(int64_t, float);
  float (*read)(const float*, int64_t);
  int64_t lanes;
};

Limits limits_of(const std::string& instruction_set) {
#if defined(__x86_64__)
  if (instruction_set == "avx2") return {fma_avx2, read_avx2, 8};
  if (instruction_set == "avx512") return {fma_avx512, read_avx512, 16};
#endif
  return {fma_baseline, read_baseline, 4};
}

template <typename F>
double nanoseconds(const F& f) {
  const auto start = std::chrono::steady_clock::now();
  volatile float result = f();
  (void)result;
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}

double fma_gflops(const std::string& instruction_set) {
  constexpr int64_t kSteps = 200'000;
  const Limits limits = limits_of(instruction_set);
  volatile float factor = 0.999f;
  return 2.0 * kSteps * kChains * limits.lanes /
         nanoseconds([&] { return limits.fma(kSteps, factor); });
}

double read_gbytes(const std::string& instruction_set, const at::Tensor& x) {
  const Limits limits = limits_of(instruction_set);
  const auto* data = x.const_data_ptr<float>();
  return 4.0 * x.numel() / nanoseconds([&] { return limits.read(data, x.numel()); });
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
  m.def("read_gbytes", read_gbytes);
  m.def("empty", empty);
}
