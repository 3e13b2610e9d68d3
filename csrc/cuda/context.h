// Where and how a call runs.
#pragma once

#include <string>

#include "cuda/choose.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

class Guard;

struct Context {
  cudaStream_t stream;
  Device device;
  bool tf32;                 // whether float32 products may use TF32
  std::string forced;        // a kernel's name, as choose() takes it
  Guard* guard = nullptr;    // null: every kernel serves
  bool few_launches = true;  // false: small calls run as large ones do, for tests
};

}  // namespace fastrnn::cuda
