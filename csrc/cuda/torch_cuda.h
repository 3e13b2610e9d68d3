// What the operators take of torch's CUDA half. It is looked up where torch has loaded it, so this
// library, which is linked to none of it, loads beside a torch without CUDA too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "rnn.h"

namespace fastrnn::cuda {

struct TorchCuda {
  std::string missing;  // what this torch lacks of all that follows; empty: nothing

  int32_t (*current_stream)(int32_t device_index, void** stream);

  // torch's handle of cuBLAS, with its stream and workspace: the one or the other, by its version.
  void* (*blas_handle)();
  void* (*blas_handle_with_setup)(bool setup);
  // Of a torch that leaves its handle without a workspace of torch's (2.15): how large it would be,
  // and what gives the handle one; else null.
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
