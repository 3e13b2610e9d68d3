// The model by which choose() compares kernels: a step's time, by sizes and a few constants.
#pragma once

#include "cuda/choose.h"

namespace fastrnn::cuda {

// What step_time() reckons with: estimates from published latencies; to be measured
// (benchmarks/gpu/fit.py). A cycle is 1/1.7 ns; a rate is that of a multiprocessor.
struct StepTimes {
  double latency = 170;         // cycles of every step: loads, shuffles, tanh and the barrier
  double fma_rate = 100;        // multiply-adds a cycle on FMA units, of 128
  double tf32_rate = 300;       // the same on tensor cores, of 512, in mma.sync's practice
  double narrow_rate = 600;     // the same in float16 and bfloat16, of 1024
  double warp_load = 2;         // cycles of a warp's load from shared memory, for FMA units
  double shared_rate = 128;     // bytes a cycle from shared memory, for tensor cores
  double cluster_hop = 300;     // cycles from a block of a cluster to another
  double cluster_rate = 18;     // bytes a cycle into each block of a cluster
  double weights_rate = 4;      // elements of w_hh a cycle, before the first step
  double launches = 5000;       // nanoseconds of the launches of a step: a GEMM and a kernel
  double product_rate = 15000;  // multiply-adds a nanosecond of that GEMM, on the whole device
  double torch_small = 1.4;     // cuDNN's time of a small step, in times of our GEMM and kernel
  double torch_large = 0.9;     // the same of a large one
};

// Estimated nanoseconds of a step of all rows.
double step_time(const Configuration& c, const Problem& problem, const Device& device,
                 const StepTimes& times = {});

}  // namespace fastrnn::cuda
