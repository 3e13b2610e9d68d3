// ATen's products follow the precision set for torch.backends.cuda.matmul; nn.RNN's follow
// torch.backends.cudnn.rnn, which by default differs, and which may be set for one thread only by
// setting it for all. So on a GPU the products are cuBLAS's own, with torch's handle, which brings
// its stream and its workspace. A step's product also starts sooner this way than through ATen.
#include "cuda/gemm.h"

#include <ATen/Context.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "cuda/torch_cuda.h"

namespace fastrnn::cuda {
namespace {

// cublas_api.h and library_types.h
constexpr int kAsItIs = 0, kTransposed = 1, kDefaultAlgorithm = -1;
constexpr int kComputeFloat32 = 68, kComputeTf32 = 77, kComputeFloat64 = 70;
constexpr int kDefaultMath = 0, kNoReducedPrecisionReduction = 16;

int cublas_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return 0;
    case at::kDouble:
      return 1;
    case at::kHalf:
      return 2;
    case at::kBFloat16:
      return 14;
    default:
      TORCH_CHECK(false, "rnn: no matrix product for ", type);
  }
}

// A row-major matrix as cuBLAS sees it: the transpose, column by column.
struct Operand {
  int op;
  int64_t leading;
};

Operand operand_of(const Matrix& x) {
  if (x.column_stride == 1 || x.columns == 1)
    return {kAsItIs, x.rows == 1 ? x.columns : x.row_stride};
  TORCH_CHECK(x.row_stride == 1 || x.rows == 1, "rnn: expected a matrix with a stride of 1, got ",
              x.row_stride, " and ", x.column_stride);
  return {kTransposed, x.column_stride};
}

}  // namespace

bool allows_tf32() {
  static const bool forbidden = [] {
    const char* const set = std::getenv("NVIDIA_TF32_OVERRIDE");
    return set && std::string_view(set) == "0";
  }();
  return !forbidden && at::globalContext().allowTF32CuDNN(at::Float32Op::RNN);
}

// Since torch 2.15 the handle comes with cuBLAS's own workspace, unless the user asks torch to keep
// one: torch's allocator does not count that, and a captured graph allocates it. So it gets one of
// torch's here.
Products::Products(at::Device device, bool tf32) : tf32_(tf32) {
  const at::NoTF32Guard plain;  // the handle's mode; each product names its own precision
  const TorchCuda& torch = torch_cuda();
  handle_ = torch.blas_handle_with_setup ? torch.blas_handle_with_setup(true) : torch.blas_handle();
  if (!torch.workspace_bytes) return;
  const size_t bytes = torch.workspace_bytes();
  workspace_ = c10::GetAllocator(device.type())->allocate(bytes);
  int status = torch.get_stream(handle_, &stream_);
  if (status == 0) status = torch.set_workspace(handle_, workspace_.get(), bytes);
  TORCH_CHECK(status == 0, "rnn: cuBLAS takes no workspace, status ", status);
}

// Whoever sets the stream takes the workspace away; who fails keeps it for good.
Products::~Products() {
  if (workspace_ && torch_cuda().set_stream(handle_, stream_) != 0) workspace_.release_context();
}

// `parts` products over neighbouring shares of the depth; of one part the whole product.
void Products::multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool add, int parts,
                        int64_t from_part_to_part) const {
  if (out.rows == 0 || out.columns == 0) return;
  const double doubles[2] = {0, 1};
  const float floats[2] = {0, 1};
  int compute = tf32_ && a.type == at::kFloat ? kComputeTf32 : kComputeFloat32;
  const void *zero = &floats[0], *one = &floats[1];
  if (a.type == at::kDouble) {
    compute = kComputeFloat64;
    zero = &doubles[0];
    one = &doubles[1];
  }
  const Operand x = operand_of(a), y = operand_of(b), z = operand_of(out);
  TORCH_CHECK(z.op == kAsItIs, "rnn: expected a row-major result");
  const int type = cublas_type(a.type);
  const int64_t depth = a.columns / parts;
  const TorchCuda& torch = torch_cuda();
  // In its default mode, in which the handle comes, cuBLAS may add the parts of a split sum in the
  // type of a result of 16 bits.
  const bool narrow = at::isReducedFloatingType(out.type);
  int status = narrow ? torch.set_math_mode(handle_, kNoReducedPrecisionReduction) : 0;
  if (status == 0 && parts == 1) {
    status = torch.gemm(handle_, y.op, x.op, out.columns, out.rows, depth, one, b.data, type,
                        y.leading, a.data, type, x.leading, add ? one : zero, out.data,
                        cublas_type(out.type), z.leading, compute, kDefaultAlgorithm);
  } else if (status == 0) {
    status =
        torch.gemm_batch(handle_, y.op, x.op, out.columns, out.rows, depth, one, b.data, type,
                         y.leading, depth * b.row_stride, a.data, type, x.leading,
                         depth * a.column_stride, add ? one : zero, out.data, cublas_type(out.type),
                         z.leading, from_part_to_part, parts, compute, kDefaultAlgorithm);
  }
  if (narrow) torch.set_math_mode(handle_, kDefaultMath);
  TORCH_CHECK(status == 0, "rnn: cuBLAS failed with status ", status, " for ", a.rows, " x ",
              a.columns, " by ", b.columns, " in ", a.type);
}

int parts_of(int64_t rows, int64_t columns, int64_t depth, int multiprocessors) {
  constexpr int64_t kTile = 128, kLeastDepth = 64, kAligned = 8;
  const auto tiles = [](int64_t x) { return (x + kTile - 1) / kTile; };
  const int64_t most = std::min(
      multiprocessors / std::max<int64_t>(tiles(rows) * tiles(columns), 1), depth / kLeastDepth);
  for (int64_t parts = most; parts > 1; --parts)
    if (depth % (parts * kAligned) == 0) return static_cast<int>(parts);
  return 1;
}

}  // namespace fastrnn::cuda
