// The kernels and their launchers, one file each of csrc/cuda.
#include "cuda/cluster.cu"
#include "cuda/grads.cu"
#include "cuda/leaky.cu"
#include "cuda/step.cu"
#include "cuda/tile.cu"
#include "cuda/vector.cu"
