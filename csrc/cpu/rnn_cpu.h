#pragma once

namespace fastrnn::cpu {

// The instruction set whose kernels serve calls on the CPU.
__attribute__((visibility("default"))) const char* kernels_name();

}  // namespace fastrnn::cpu
