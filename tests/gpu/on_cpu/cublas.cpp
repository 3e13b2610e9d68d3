// What csrc/cuda/gemm.cpp takes of torch and of cuBLAS, over CPU memory: columns lie one behind the
// other, and the arguments are checked as cuBLAS checks them. TF32 stays float32. The handle comes
// without a workspace, as of torch 2.15, and here a product wants one.
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <vector>

#include "cuda/torch_cuda.h"
#include "cuda_on_cpu.h"

namespace {

enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kNotSupported = 15 };

constexpr size_t kWorkspaceBytes = 4096;
thread_local void* workspace = nullptr;

int set_workspace(void*, void* to, size_t bytes) {
  workspace = to;
  return bytes == kWorkspaceBytes ? kSuccess : kInvalidValue;
}
int get_stream(void*, void** stream) {
  *stream = nullptr;
  return kSuccess;
}
int set_stream(void*, void*) {
  workspace = nullptr;
  return kSuccess;
}
void* handle(bool) {
  ++planted.handles;
  set_stream(nullptr, nullptr);
  return &workspace;
}

at::ScalarType type_of(int type) {
  switch (type) {
    case 0:
      return at::kFloat;
    case 1:
      return at::kDouble;
    case 2:
      return at::kHalf;
    case 14:
      return at::kBFloat16;
    default:
      return at::ScalarType::Undefined;
  }
}

at::Tensor matrix(const void* data, int64_t rows, int64_t columns, int op, int64_t leading,
                  at::ScalarType type) {
  const std::vector<int64_t> strides =
      op ? std::vector<int64_t>{leading, 1} : std::vector<int64_t>{1, leading};
  return at::from_blob(const_cast<void*>(data), {rows, columns}, strides, at::TensorOptions(type));
}

int set_math_mode(void*, int mode) { return mode == 0 || mode == 16 ? kSuccess : kInvalidValue; }

int gemm(void*, int op_a, int op_b, int64_t m, int64_t n, int64_t k, const void* alpha,
         const void* a, int type_a, int64_t lda, const void* b, int type_b, int64_t ldb,
         const void* beta, void* c, int type_c, int64_t ldc, int compute, int) {
  if (!workspace) return kNotInitialized;
  if (m < 0 || n < 0 || k < 0 || ldc < std::max<int64_t>(m, 1) ||
      lda < std::max<int64_t>(op_a ? k : m, 1) || ldb < std::max<int64_t>(op_b ? n : k, 1))
    return kInvalidValue;
  const at::ScalarType type = type_of(type_a), to = type_of(type_c);
  const bool is_double = compute == 70, narrow = at::isReducedFloatingType(type);
  if (type_a != type_b || is_double != (type == at::kDouble) ||
      (compute == 77 && type != at::kFloat) || !(is_double || compute == 68 || compute == 77) ||
      !(to == type || (narrow && to == at::kFloat)))
    return kNotSupported;
  ++planted.launches;
  const c10::impl::ExcludeDispatchKeyGuard unseen(c10::DispatchKeySet(
      {c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));  // by who counts operators
  const auto scale = [&](const void* x) {
    return is_double ? *static_cast<const double*>(x) : *static_cast<const float*>(x);
  };
  const at::Tensor x = matrix(a, m, k, op_a, lda, type), y = matrix(b, k, n, op_b, ldb, type);
  const at::Tensor result = matrix(c, m, n, 0, ldc, to);
  const at::Tensor sum = at::mm(x.to(to), y.to(to)).mul_(scale(alpha));
  if (scale(beta) != 0) sum.add_(result, scale(beta));  // where it is 0, c may hold anything
  result.copy_(sum);
  return kSuccess;
}

int gemm_batch(void* handle, int op_a, int op_b, int64_t m, int64_t n, int64_t k, const void* alpha,
               const void* a, int type_a, int64_t lda, long long stride_a, const void* b,
               int type_b, int64_t ldb, long long stride_b, const void* beta, void* c, int type_c,
               int64_t ldc, long long stride_c, int64_t count, int compute, int algorithm) {
  const auto at = [](const void* data, int type, int64_t elements) {
    return static_cast<const char*>(data) +
           elements * static_cast<int64_t>(c10::elementSize(type_of(type)));
  };
  for (int64_t i = 0; i < count; ++i) {
    const int status =
        gemm(handle, op_a, op_b, m, n, k, alpha, at(a, type_a, i * stride_a), type_a, lda,
             at(b, type_b, i * stride_b), type_b, ldb, beta,
             const_cast<char*>(at(c, type_c, i * stride_c)), type_c, ldc, compute, algorithm);
    if (status != kSuccess) return status;
  }
  return kSuccess;
}

}  // namespace

namespace fastrnn::cuda {

const TorchCuda& torch_cuda() {
  static const TorchCuda all = [] {
    TorchCuda torch{};
    torch.blas_handle_with_setup = handle;
    torch.workspace_bytes = [] { return kWorkspaceBytes; };
    torch.set_workspace = set_workspace;
    torch.get_stream = get_stream;
    torch.set_stream = set_stream;
    torch.gemm = gemm;
    torch.gemm_batch = gemm_batch;
    torch.set_math_mode = set_math_mode;
    return torch;
  }();
  return all;
}

}  // namespace fastrnn::cuda
