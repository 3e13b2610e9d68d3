// From a choice to the launch of a kernel of its configuration.
#pragma once

#include "cuda/any_rows.cuh"
#include "cuda/block.cuh"
#include "cuda/launchers.h"
#include "cuda/whole_rows.cuh"

namespace fastrnn::cuda {

inline bool same_strides(const Sequence& x, const Sequence& y) {
  return !x.data || (x.step_stride == y.step_stride && x.row_stride == y.row_stride);
}
inline bool same_strides(const ForwardDirection& d) {
  return same_strides(d.igates, d.output) && same_strides(d.copy, d.output);
}
inline bool same_strides(const BackwardDirection& d) { return same_strides(d.grad_pre, d.output); }

// Whether it can be moved 16 bytes at a time.
inline bool in_pieces(const Sequence& x, int64_t size) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.step_stride * size % 16 == 0 &&
         x.row_stride * size % 16 == 0;
}
inline bool in_pieces(const ForwardDirection& d, int64_t size) {
  return in_pieces(d.igates, size) && in_pieces(d.output, size) && in_pieces(d.copy, size);
}
inline bool in_pieces(const BackwardDirection& d, int64_t size) {
  return in_pieces(d.output, size) && in_pieces(d.grad_output, size) && in_pieces(d.grad_pre, size);
}

// Whether WholeForward or WholeBackward serves.
template <typename Group, typename Direction>
bool is_whole(const Recurrence<Direction>& r) {
  if (r.rows.lengths || r.rows.start || r.rows.reset || r.rows.seq_len == 0) return false;
  if constexpr (Group::kInPieces) {
    constexpr int64_t kSize = sizeof(typename Group::Storage);
    for (int n = 0; n < r.num_directions; ++n)
      if (!in_pieces(r.direction[n], kSize)) return false;
    return r.hidden_size * kSize % 16 == 0;
  } else {
    return true;
  }
}

// One launch for all rows and directions.
template <typename Group, int kAhead, typename Direction>
cudaError_t launch_blocks(const Recurrence<Direction>& r, cudaStream_t stream) {
  constexpr bool kForward = std::is_same_v<Direction, ForwardDirection>;
  const int64_t groups = (r.rows.batch + Group::kRows - 1) / Group::kRows;
  if (groups == 0 || r.rows.batch > INT32_MAX / Group::kBlocks ||
      r.rows.seq_len > INT32_MAX - 2 * kAhead || r.hidden_size > Group::kHidden)
    return cudaErrorInvalidValue;
  for (int n = 0; n < r.num_directions; ++n)
    if (!same_strides(r.direction[n])) return cudaErrorInvalidValue;
  const Launch how{dim3(static_cast<unsigned>(groups * Group::kBlocks), r.num_directions),
                   Group::kThreads, Group::kSharedBytes, stream, Group::kBlocks};
  if constexpr (Group::kOwn.slots() > 0) {
    if (is_whole<Group>(r)) {
      if constexpr (kForward) {
        return launch(forward_block_kernel<Group, WholeForward<Group>>, how, r);
      } else {
        return launch(backward_block_kernel<Group, WholeBackward<Group>>, how, r);
      }
    }
  }
  if constexpr (kForward) {
    return launch(forward_block_kernel<Group, AnyForward<Group, kAhead>>, how, r);
  } else {
    return launch(backward_block_kernel<Group, AnyBackward<Group, kAhead>>, how, r);
  }
}

// f(S{}, n), n a constant, where kConfigurations[n] is the choice, this kernel's, and takes the
// recurrence's dtype, S; else cudaErrorInvalidValue.
template <Kernel kKernel, int n = 0, typename Direction, typename F>
cudaError_t with_configuration(const Recurrence<Direction>& r, const Choice& choice, const F& f) {
  if constexpr (n == kConfigurations.size()) {
    return cudaErrorInvalidValue;
  } else {
    if constexpr (constexpr Configuration kOwn = kConfigurations[n]; kOwn.kernel == kKernel) {
      if (n == choice.configuration && kOwn.takes(r.dtype, r.tf32)) {
        constexpr std::integral_constant<int, n> kPlace;
        if constexpr (kOwn.arithmetic == Arithmetic::kNarrow) {
          return r.dtype == Dtype::kFloat16 ? f(Half{}, kPlace) : f(BFloat16{}, kPlace);
        } else {
          return f(float{}, kPlace);
        }
      }
    }
    return with_configuration<kKernel, n + 1>(r, choice, f);
  }
}

}  // namespace fastrnn::cuda
