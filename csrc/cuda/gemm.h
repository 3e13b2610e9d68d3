// Matrix products on the current stream, with nn.RNN's own choice of precision.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastrnn::cuda {

// A matrix in which one stride is 1; a view that costs nothing to make.
struct Matrix {
  char* data;
  int64_t rows, columns, row_stride, column_stride;
  at::ScalarType type;
  at::Device device;

  explicit Matrix(const at::Tensor& x)
      : data(static_cast<char*>(const_cast<void*>(x.const_data_ptr()))),
        rows(x.size(0)),
        columns(x.size(1)),
        row_stride(x.stride(0)),
        column_stride(x.stride(1)),
        type(x.scalar_type()),
        device(x.device()) {}

  Matrix transposed() const {
    Matrix x = *this;
    std::swap(x.rows, x.columns);
    std::swap(x.row_stride, x.column_stride);
    return x;
  }
  Matrix some_rows(int64_t first, int64_t count) const {
    Matrix x = *this;
    x.data += first * row_stride * static_cast<int64_t>(c10::elementSize(type));
    x.rows = count;
    return x;
  }
};

// Whether torch.backends.cudnn.rnn.fp32_precision lets float32 products use TF32, and NVIDIA's own
// switch, which cuBLAS and cuDNN heed, does not forbid it.
bool allows_tf32();

// Products one after the other, for which torch is asked once for its handle, stream and workspace.
// Nothing else may use the handle meanwhile.
class Products {
 public:
  Products(at::Device device, bool tf32);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  // out = a @ b, or out += a @ b. out is row-major, of the type of a and b, or float32 where they
  // are of 16 bits. Sums in float32, of double in double.
  void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool add = false) const {
    multiply(out, a, b, add, 1, 0);
  }
  // The same as that many matrices, out and those that follow it without gaps, whose sum is a @ b.
  void multiply_in_parts(const Matrix& out, int parts, int64_t from_part_to_part, const Matrix& a,
                         const Matrix& b) const {
    multiply(out, a, b, false, parts, from_part_to_part);
  }

 private:
  void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool add, int parts,
                int64_t from_part_to_part) const;

  const bool tf32_;
  void* handle_;
  void* stream_ = nullptr;
  at::DataPtr workspace_;
};

inline void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool tf32,
                     bool add = false) {
  Products(out.device, tf32).multiply(out, a, b, add);
}

// A product of few rows and columns fills a GPU only where its depth is split. In how many parts:
// they divide the depth, and leave each enough of it.
int parts_of(int64_t rows, int64_t columns, int64_t depth, int multiprocessors);

}  // namespace fastrnn::cuda
