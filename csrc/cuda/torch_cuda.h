// What the operators use of torch's CUDA half. It is looked up at run time, where torch has loaded
// it: this library is not linked to it, and so also loads with a torch without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "rnn.h"

namespace fastrnn::cuda {

struct TorchCuda {
  std::string missing;  // what this torch lacks of all that follows; empty: nothing

  int32_t (*current_stream)(int32_t device_index, void** stream);

  // torch's cuBLAS handle, with its stream and workspace: one of these two, by torch's version.
  void* (*blas_handle)();
  void* (*blas_handle_with_setup)(bool setup);
  // If torch leaves the handle without a workspace (2.15): the size of torch's workspace, and what
  // sets one; else null.
  size_t (*workspace_bytes)();
  int (*set_workspace)(void* handle, void* workspace, size_t bytes);
  int (*get_stream)(void* handle, void** stream);
  int (*set_stream)(void* handle, void* stream);  // takes the workspace away

  // As cublas_api.h declares them, enums as int.
  int (*gemm)(void* handle, int op_a, int op_b, int64_t m, int64_t n, int64_t k, const void* alpha,
              const void* a, int type_a, int64_t lda, const void* b, int type_b, int64_t ldb,
              const void* beta, void* c, int type_c, int64_t ldc, int compute, int algorithm);
  int (*gemm_batch)(void* handle, int op_a, int op_b, int64_t m, int64_t n, int64_t k,
                    const void* alpha, const void* a, int type_a, int64_t lda, long long stride_a,
                    const void* b, int type_b, int64_t ldb, long long stride_b, const void* beta,
                    void* c, int type_c, int64_t ldc, long long stride_c, int64_t count,
                    int compute, int algorithm);
  int (*set_math_mode)(void* handle, int mode);
};

FASTRNN_API const TorchCuda& torch_cuda();

}  // namespace fastrnn::cuda
