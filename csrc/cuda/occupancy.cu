#include <algorithm>

#include "cuda/build.h"
#include "cuda/occupancy.h"

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

cudaError_t make_current(int index) {
  int before = 0;
  const cudaError_t error = cudaGetDevice(&before);
  return error != cudaSuccess || before == index ? error : cudaSetDevice(index);
}

cudaError_t describe(int index, Device* device, std::vector<int>* groups, std::string* name) {
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess) error = make_current(index);
  const auto ask = [&](cudaDeviceAttr which) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, which, index);
    return value;
  };
  const int major = ask(cudaDevAttrComputeCapabilityMajor);
  *device = {10 * major + ask(cudaDevAttrComputeCapabilityMinor),
             ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
             ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
             ask(cudaDevAttrMaxRegistersPerMultiprocessor)};
  cudaFuncAttributes attributes{};
  cudaDeviceProp properties{};
  if (error == cudaSuccess)
    error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(cluster_kernel));
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) return error;
  *name = properties.name;
  device->compiled_for = attributes.ptxVersion > 0 ? attributes.ptxVersion : device->capability;
  if (*architectures()) {
    device->compiled_for =
        std::min(device->compiled_for, compiled_for(device->capability, architectures()));
  }
  groups->resize(kConfigurations.size());
  for (const Choice& c : configurations()) (*groups)[c.configuration] = groups_at_once(c, *device);
  device->groups_at_once = groups->data();
  return cudaSuccess;
}

int groups_at_once(const Choice& c, const Device& device) {
  if (!can_launch(c, device)) return 0;
  int clusters = 0;
  if (c.blocks == 1) return estimate_groups_at_once(c, device);
  if (device.compiled_for >= 90 && ask(c, device, &clusters) == cudaSuccess) return clusters;
  forget_error();
  return 0;
}

}  // namespace fastrnn::cuda
