// A check's recurrences by the step kernels, with plain products between them.
#pragma once

#include "cuda/check_tensors.h"
#include "cuda/device.cuh"
#include "cuda/step.h"

namespace fastrnn::cuda {
namespace {

// Calls one after the other until one fails.
struct Until {
  cudaError_t error = cudaSuccess;

  template <typename F>
  void call(const F& f) {
    if (error == cudaSuccess) error = f();
  }
};

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), int64_t threads, int directions, cudaStream_t stream,
                const Arguments&... arguments) {
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads), directions);
  return launch(kernel, {grid, kThreads, 0, stream}, static_cast<Parameters>(arguments)...);
}

// The step kernels, with plain products between them, as steps.cpp has them with cuBLAS's.
cudaError_t forward_by_steps(const ForwardRecurrence& r, const Tensors& t, cudaStream_t stream) {
  const int64_t B = r.rows.batch, H = r.hidden_size, T = r.rows.seq_len;
  const bool uniform = !r.rows.lengths && !r.rows.reset;
  Until until;
  ForwardStep step{r, 0, B, {}, {}};
  for (int d = 0; d < r.num_directions && !uniform; ++d) {
    until.call([&] {
      return cudaMemcpyAsync(r.direction[d].hn, r.direction[d].hx, B * H * bytes_of(r.dtype),
                             cudaMemcpyDeviceToDevice, stream);
    });
  }
  for (int64_t& i = step.step; i < T; ++i) {
    for (int d = 0; d < r.num_directions; ++d) {
      const ForwardDirection& own = r.direction[d];
      const void* from = uniform ? own.hx : own.hn;
      int64_t stride = uniform ? own.hx_row_stride : H;
      if (uniform && i > 0) {
        const int64_t before = own.reverse ? T - i : i - 1;
        from = part(own.output.data, before, own.output.step_stride, r.dtype);
        stride = own.output.row_stride;
      }
      step.state[d] = uniform && i < T - 1 ? nullptr : own.hn;
      step.product[d] = from ? part(t.product, d, B * H, Dtype::kFloat64) : nullptr;
      if (!from) continue;
      until.call([&] {
        return run(product_kernel, B * H, 1, stream, r.dtype, from, stride, own.w_hh, false, B, H,
                   const_cast<void*>(step.product[d]));
      });
    }
    until.call([&] { return launch_forward_step(step, stream); });
  }
  return until.error;
}

// grad_hx comes in the accumulation type.
cudaError_t backward_by_steps(const BackwardRecurrence& r, const Tensors& t, const Layout& layout,
                              cudaStream_t stream) {
  const int64_t B = r.rows.batch, H = r.hidden_size, T = r.rows.seq_len;
  Until until;
  BackwardStep step{r, 0, B, {}, {}};
  for (int d = 0; d < r.num_directions; ++d) {
    step.product[d] = part(t.product, d, B * H, Dtype::kFloat64);
    step.grad_hx[d] = r.direction[d].grad_hx;
  }
  for (; step.step <= T; ++step.step) {
    for (int d = 0; d < r.num_directions; ++d) {
      const BackwardDirection& own = r.direction[d];
      const int64_t after = own.reverse ? step.step - 1 : T - step.step;
      if (after < 0 || after >= T) continue;
      const void* from =
          part(own.grad_pre.data, layout.start[after], own.grad_pre.row_stride, r.dtype);
      until.call([&] {
        return run(product_kernel, layout.active(after) * H, 1, stream, r.dtype, from,
                   own.grad_pre.row_stride, own.w_hh, true, layout.active(after), H,
                   const_cast<void*>(step.product[d]));
      });
    }
    until.call([&] { return launch_backward_step(step, stream); });
  }
  return until.error;
}

}  // namespace
}  // namespace fastrnn::cuda
