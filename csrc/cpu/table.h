// The table of one instruction set's kernels. The including file names it and sets kVectorBytes and
// kVectorRegisters.
#pragma once

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/grads.h"
#include "cpu/pack.h"

namespace fastrnn::cpu {
namespace {

template <typename S>
bool pack(void* dst, const void* src, int64_t depth, int64_t columns, bool transposed, int part,
          int parts) {
  using C = typename Accumulate<S>::type;
  C* to = static_cast<C*>(dst);
  const S* from = static_cast<const S*>(src);
#if defined(FASTRNN_AVX512_BF16)
  if constexpr (kHasPairs<S>) {
    return transposed ? pack_pair_panels<true>(to, from, depth, columns, depth, part, parts)
                      : pack_pair_panels<false>(to, from, depth, columns, columns, part, parts);
  }
#endif
  return transposed ? pack_panels<true>(to, from, depth, columns, depth, part, parts)
                    : pack_panels<false>(to, from, depth, columns, columns, part, parts);
}

template <typename S>
void add_biases(void* dst, const void* b_ih, const void* b_hh, int64_t size) {
  using C = typename Accumulate<S>::type;
  C* sum = static_cast<C*>(dst);
  for (int64_t j = 0; j < padded(size); ++j) sum[j] = 0;
  if (!b_ih) return;
  widen(sum, static_cast<const S*>(b_ih), size);
  for (int64_t j = 0; j < size; ++j) {
    C b;
    widen(&b, static_cast<const S*>(b_hh) + j, 1);
    sum[j] += b;
  }
}

template <typename S>
void activate(void* dst, const void* src, int64_t size, Nonlinearity f) {
  using C = typename Accumulate<S>::type;
  C wide[kLanes<C>];
  for (int64_t i = 0; i < size; i += kLanes<C>) {
    const int n = size - i < kLanes<C> ? static_cast<int>(size - i) : kLanes<C>;
    const Vec<C> x = load_widened<C>(static_cast<const S*>(src) + i, n);
    store(wide, f == Nonlinearity::kTanh ? tanh<C>(x) : relu<C>(x));
    narrow(static_cast<S*>(dst) + i, wide, n);
  }
}

template <typename S>
constexpr TypedKernels typed_kernels() {
  return {.traits = {.packed_form = kHasPairs<S> ? Form::kPackedPairs : Form::kPacked,
                     .panel_bytes = int64_t{kMaxVectors} * kVectorBytes,
                     .vector_bytes = kVectorBytes},
          .pack = pack<S>,
          .add_biases = add_biases<S>,
          .activate = activate<S>,
          .forward = for_blocks<ForwardBlock<S>, ForwardTask>,
          .backward = for_blocks<BackwardBlock<S>, BackwardTask>,
          .input_grad = input_grad<S>,
          .weight_grad = weight_grad<S>,
          .alpha_grad = alpha_grad<S>};
}

constexpr Kernels make_kernels(const char* name) {
  static_assert(kDtypes == 4);  // in the order of Dtype
  return {name,
          {typed_kernels<float>(), typed_kernels<double>(), typed_kernels<BFloat16>(),
           typed_kernels<Float16>()}};
}

}  // namespace
}  // namespace fastrnn::cpu
