#pragma once

namespace fastrnn::cpu {

// The instruction set whose kernels serve calls on the CPU.
const char* kernels_name();

}  // namespace fastrnn::cpu
