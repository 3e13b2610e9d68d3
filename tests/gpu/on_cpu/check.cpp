// The checks, apart from the kernels that they check.
#include "cuda/check.cu"
