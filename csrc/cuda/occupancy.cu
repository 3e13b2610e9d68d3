#include <algorithm>

#include "cuda/occupancy.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {
namespace {

// Stands in for a cluster kernel: the driver knows how many clusters the device's GPCs hold, which
// need not be whole multiples of one.
__global__ void cluster_kernel() {}

cudaError_t ask(const Choice& c, const Device& device, int* clusters) {
  const void* kernel = reinterpret_cast<const void*>(cluster_kernel);
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_per_block);
  if (error != cudaSuccess) return error;
  // As much shared memory as leaves room for as many blocks as registers do.
  const int share = device.shared_per_multiprocessor / blocks_at_once(c, device) - kReservedShared;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(c.blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(c.blocks);
  config.blockDim = dim3(c.threads);
  config.dynamicSmemBytes = std::min(share, device.shared_per_block);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

}  // namespace

cudaError_t probe_kernels(int* compiled_for) {
  cudaFuncAttributes attributes{};
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(cluster_kernel));
  *compiled_for = attributes.ptxVersion;
  return error;
}

int groups_at_once(const Choice& c, const Device& device) {
  if (!can_launch(c, device)) return 0;
  int clusters = 0;
  if (c.blocks == 1) return estimate_groups_at_once(c, device);
  if (device.compiled_for >= 90 && ask(c, device, &clusters) == cudaSuccess) return clusters;
  cudaGetLastError();  // so that nobody else finds it
  return 0;
}

}  // namespace fastrnn::cuda
