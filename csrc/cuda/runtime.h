// The CUDA runtime's types, or, where the tests compile the kernels for the CPU, their stand-ins.
#pragma once

#if defined(FASTRNN_ON_CPU)
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime_api.h>
#endif
