#include "cuda/torch_cuda.h"

#include <dlfcn.h>

#include <type_traits>

namespace fastrnn::cuda {
namespace {

TorchCuda look_up() {
  // Never closed: torch keeps it as well. Its symbols include those of what it needs, as of cuBLAS.
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  const auto take = [&](auto*& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(
        library ? dlsym(library, name) : nullptr);
    return function != nullptr;
  };
  TorchCuda found{};
  const auto need = [&](auto*& function, const char* name) {
    if (!take(function, name))
      found.missing += (found.missing.empty() ? "" : ", ") + std::string(name);
  };
  need(found.current_stream, "aoti_torch_get_current_cuda_stream");
  // at::cuda::getCurrentCUDABlasHandle, which got its argument with torch 2.12.
  take(found.blas_handle_with_setup, "_ZN2at4cuda24getCurrentCUDABlasHandleEb");
  if (!found.blas_handle_with_setup)
    need(found.blas_handle, "_ZN2at4cuda24getCurrentCUDABlasHandleEv");
  // at::cuda::getCurrentCUDABlasHandleWithWorkspace, for torch's own use.
  void* (*with_workspace)() = nullptr;
  if (take(with_workspace, "_ZN2at4cuda37getCurrentCUDABlasHandleWithWorkspaceEv")) {
    need(found.workspace_bytes, "_ZN2at4cuda22getChosenWorkspaceSizeEv");
    need(found.set_workspace, "cublasSetWorkspace_v2");
    need(found.get_stream, "cublasGetStream_v2");
    need(found.set_stream, "cublasSetStream_v2");
  }
  need(found.gemm, "cublasGemmEx_64");  // since CUDA 12
  need(found.gemm_batch, "cublasGemmStridedBatchedEx_64");
  need(found.set_math_mode, "cublasSetMathMode");
  return found;
}

}  // namespace

const TorchCuda& torch_cuda() {
  static const TorchCuda& found =
      *new TorchCuda(look_up());  // never destroyed: threads may outlive it
  return found;
}

}  // namespace fastrnn::cuda
