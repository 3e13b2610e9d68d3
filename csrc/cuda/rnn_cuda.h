#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace fastrnn::cuda {

// Why no kernel of this build serves a device; empty if some do.
FASTRNN_API const std::string& why_no_kernels(int index);

// Forces a kernel on all later calls, in all threads, by a name that choose() takes; empty: free
// choice. Returns the previous name, at first that of FASTRNN_CUDA_KERNEL when the library loaded.
FASTRNN_API std::string set_kernel(const std::string& name);
// The kernels that a call with an input like this one takes, forward and backward, or "torch" and
// why.
FASTRNN_API std::string kernels_for(const Tensor& like, int64_t seq_len, int64_t batch,
                                    int64_t hidden_size, bool bidirectional, bool has_hx,
                                    bool trains, bool drops);

// The check of a kernel (check.h).
struct Checked {
  std::string name;
  at::ScalarType dtype;
  std::string rows;
  double error, allowed;
  std::string fault;  // empty: none
};
// Checks all that can run on the tensor's device, until one stops it.
FASTRNN_API std::vector<Checked> check_kernels(const Tensor& like);

}  // namespace fastrnn::cuda
