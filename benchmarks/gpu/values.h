// Tensors of the program beside this file: memory of the device, or of the CPU where the kernels
// are emulated, and the numbers that stand in it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/runtime.h"
#if !defined(FASTRNN_ON_CPU)
#include "cuda/occupancy.h"
#endif

namespace fastrnn::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#if defined(FASTRNN_ON_CPU)
inline void* allocate(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
inline void release(void* p) { std::free(p); }
inline void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void synchronize() {}
inline Device current_device() { return {90, 16, 227 << 10, 228 << 10, 65536}; }
inline int groups_that_run(const Choice& c, const Device& d) {
  return estimate_groups_at_once(c, d);
}
#else
inline void* allocate(size_t bytes) {
  void* p = nullptr;
  check_cuda(cudaMalloc(&p, bytes), "cudaMalloc");
  return p;
}
inline void release(void* p) { cudaFree(p); }
inline void copy(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}
inline void synchronize() { check_cuda(cudaDeviceSynchronize(), "the kernel"); }
inline Device current_device() {
  const auto attribute = [](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) +
              attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrMaxRegistersPerMultiprocessor)};
}
inline int groups_that_run(const Choice& c, const Device& d) { return groups_at_once(c, d); }
#endif

inline int bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// x as an element of this type, in the low bits, rounded to the nearest.
inline uint32_t encoded(Dtype dtype, double x) {
  const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(x));
  if (dtype == Dtype::kFloat32) return bits;
  if (dtype == Dtype::kFloat16) return std::bit_cast<uint16_t>(static_cast<_Float16>(x));
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline double decoded(Dtype dtype, uint32_t bits) {
  if (dtype == Dtype::kFloat16) return std::bit_cast<_Float16>(static_cast<uint16_t>(bits));
  return std::bit_cast<float>(dtype == Dtype::kFloat32 ? bits : bits << 16);
}
// As a factor of a product in TF32.
inline double tf32_of(double x) {
  const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(x));
  return std::bit_cast<float>((bits + 0x1000) & ~0x1fffu);
}

// Memory of the device.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : data_(allocate(bytes)) {}
  template <typename T>
  explicit Buffer(const std::vector<T>& x) : Buffer(x.size() * sizeof(T)) {
    copy(data_, x.data(), x.size() * sizeof(T));
  }
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* get() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

inline std::mt19937 generator;

// A tensor here, with exactly the numbers that the device has.
struct Values {
  Dtype dtype;
  std::vector<double> x;
  Buffer device;

  // Random; or NaN, so that an element that nobody writes is found.
  Values(Dtype dtype, int64_t count, double deviation)
      : dtype(dtype), x(count), device(count * bytes_of(dtype)) {
    std::normal_distribution<double> normal(0, deviation);
    for (double& value : x) value = decoded(dtype, encoded(dtype, normal(generator)));
    upload();
  }
  Values(Dtype dtype, int64_t count)
      : dtype(dtype), x(count, std::nan("")), device(count * bytes_of(dtype)) {
    upload();
  }
  double operator[](int64_t i) const { return x[i]; }
  void* at(int64_t i) const { return device.as<char>() + i * bytes_of(dtype); }
  void upload() {
    std::vector<char> raw(x.size() * bytes_of(dtype));
    for (size_t i = 0; i < x.size(); ++i) {
      const uint32_t bits = encoded(dtype, x[i]);
      std::memcpy(&raw[i * bytes_of(dtype)], &bits, bytes_of(dtype));
    }
    copy(device.get(), raw.data(), raw.size());
  }
  void download() {
    std::vector<char> raw(x.size() * bytes_of(dtype));
    copy(raw.data(), device.get(), raw.size());
    for (size_t i = 0; i < x.size(); ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, &raw[i * bytes_of(dtype)], bytes_of(dtype));
      x[i] = decoded(dtype, bits);
    }
  }
};

}  // namespace fastrnn::cuda
