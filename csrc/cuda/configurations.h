// Every configuration of every kernel, a row each. choose() takes one for a call, vector.cu,
// tile.cu and cluster.cu compile theirs, and the tests run them all; nothing else lists them.
#pragma once

#include <array>
#include <string>

#include "rnn.h"

namespace fastrnn::cuda {

enum class Kernel : int {
  kTorch,   // torch's own operator: cuDNN
  kStep,    // a GEMM and a pointwise kernel for each step (step.cu)
  kVector,  // one block per few rows, FMA units (vector.cu)
  kTile,    // one block per tile of rows, tensor cores (tile.cu)
  kCluster  // a thread-block cluster per group of rows (cluster.cu)
};

// What a configuration computes with.
enum class Arithmetic : int {
  kFloat32,  // exact, on FMA units
  kTF32,     // float32, its factors rounded to TF32, on tensor cores
  kNarrow,   // float16 and bfloat16, on tensor cores
  kAny       // every dtype
};

constexpr int kBarrierBytes = 16;  // of a cluster's two barriers, in shared memory
constexpr int kRingBytes = 40 << 10, kMostRingBytes = 64 << 10;  // of the ring, and if need be
constexpr int kMostSharedBytes = 227 << 10;                      // of a block, on sm_90

// Sizes of a group of rows and of its blocks. A kernel without groups has zeros.
struct Configuration {
  Kernel kernel;
  Arithmetic arithmetic;
  int units = 0;         // hidden units that there is room for
  int rows = 0;          // of the batch, in a group
  int blocks = 0;        // in a group
  int warp_units = 0;    // hidden units of a warp
  int thread_units = 1;  // of a thread, on FMA units
  int place = 0;         // in kConfigurations

  constexpr bool has_groups() const { return units > 0; }
  constexpr bool on_tensor_cores() const {
    return arithmetic == Arithmetic::kTF32 || arithmetic == Arithmetic::kNarrow;
  }
  constexpr bool takes(Dtype dtype, bool tf32) const {
    switch (arithmetic) {
      case Arithmetic::kFloat32:
        return dtype == Dtype::kFloat32;
      case Arithmetic::kTF32:
        return dtype == Dtype::kFloat32 && tf32;
      case Arithmetic::kNarrow:
        return dtype == Dtype::kFloat16 || dtype == Dtype::kBFloat16;
      case Arithmetic::kAny:
        return true;
    }
    return false;
  }
  constexpr int element_bytes() const { return arithmetic == Arithmetic::kNarrow ? 2 : 4; }
  constexpr int threads() const { return units / blocks / warp_units * 32; }  // of a block

  // On tensor cores a warp has a fragment of w_hh for each 32 bytes of a row. What its registers do
  // not hold is in shared memory, 16 bytes of each thread; more in registers would leave too few of
  // them for the rest.
  constexpr int stored_fragments() const {
    if (!on_tensor_cores()) return 0;
    const int fragments = units * element_bytes() / 32, kept = rows > 8 ? 26 : 28;
    return fragments > kept ? fragments - kept : 0;
  }
  constexpr int stored_bytes() const { return stored_fragments() * threads() * 16; }
  // A row of the state; for tensor cores 16 bytes longer than its elements, so that eight rows lie
  // in different banks.
  constexpr int row_bytes() const { return units * element_bytes() + (on_tensor_cores() ? 16 : 0); }
  constexpr int state_bytes() const { return rows * row_bytes(); }
  // What a block reads of a sequence tensor in a step, on its way: in 16 bits rows of a warp's
  // units, 16 bytes apart so that they lie in different banks; else each thread's elements.
  constexpr int slot_bytes() const {
    if (arithmetic == Arithmetic::kNarrow) return threads() / 32 * rows * (warp_units * 2 + 16);
    const int elements = on_tensor_cores() ? rows / 2 : rows * thread_units / lanes();
    return threads() * (elements > 1 ? elements : 1) * 4;
  }
  // Steps that are on their way, of two tensors; 0 where there is no room for two.
  constexpr int slots() const {
    for (int n = 8; n > 1; n /= 2)
      if (2 * n * slot_bytes() <= (n > 2 ? kRingBytes : kMostRingBytes) &&
          ring_at() + 2 * n * slot_bytes() <= kMostSharedBytes)
        return n;
    return 0;
  }
  // Lanes that share the columns of a unit, on FMA units.
  constexpr int lanes() const { return 32 * thread_units / warp_units; }
  // A block's shared memory: the state twice, what is stored of w_hh, barriers, and the ring of
  // what is on its way.
  constexpr int barriers_at() const { return 2 * state_bytes() + stored_bytes(); }
  constexpr int ring_at() const {
    return barriers_at() + (kernel == Kernel::kCluster ? kBarrierBytes : 0);
  }
  constexpr int shared_bytes() const { return ring_at() + 2 * slots() * slot_bytes(); }
};

// A warp has 16 units, or 32 where registers allow, on tensor cores; on FMA units 8 or 16. make
// cuda-check shows the registers that a row takes.
inline constexpr std::array kConfigurations = [] {
  using enum Kernel;
  using enum Arithmetic;
  auto rows = std::to_array<Configuration>({
      {kTorch, kAny},
      {kStep, kAny},
      //                units rows blocks warp_units thread_units
      {kVector, kFloat32, 64, 1, 1, 16, 2},
      {kVector, kFloat32, 64, 2, 1, 16, 2},
      {kVector, kFloat32, 64, 4, 1, 16, 4},
      {kVector, kFloat32, 128, 1, 1, 16, 2},
      {kVector, kFloat32, 128, 2, 1, 16, 4},
      {kVector, kFloat32, 128, 4, 1, 16, 4},
      {kVector, kFloat32, 192, 1, 1, 16, 4},
      {kVector, kFloat32, 192, 2, 1, 16, 4},
      {kTile, kTF32, 64, 8, 1, 16},
      {kTile, kTF32, 128, 8, 1, 16},
      {kTile, kTF32, 160, 8, 1, 16},
      {kTile, kNarrow, 64, 8, 1, 16},
      {kTile, kNarrow, 64, 16, 1, 16},
      {kTile, kNarrow, 128, 8, 1, 16},
      {kTile, kNarrow, 128, 16, 1, 16},
      {kTile, kNarrow, 192, 8, 1, 16},
      {kTile, kNarrow, 256, 8, 1, 32},
      {kCluster, kFloat32, 256, 1, 2, 16, 4},
      {kCluster, kFloat32, 256, 2, 2, 16, 4},
      {kCluster, kFloat32, 256, 4, 2, 16, 4},
      {kCluster, kFloat32, 384, 1, 4, 8, 4},
      {kCluster, kFloat32, 384, 2, 4, 8, 4},
      {kCluster, kFloat32, 384, 4, 4, 8, 4},
      {kCluster, kFloat32, 512, 1, 8, 8, 4},
      {kCluster, kFloat32, 512, 2, 8, 8, 4},
      {kCluster, kFloat32, 512, 4, 8, 8, 4},
      {kCluster, kTF32, 256, 8, 2, 16},
      {kCluster, kTF32, 384, 8, 4, 16},
      {kCluster, kTF32, 512, 8, 8, 16},
      {kCluster, kTF32, 640, 8, 8, 16},
      {kCluster, kNarrow, 384, 8, 4, 16},
      {kCluster, kNarrow, 384, 16, 4, 16},
      {kCluster, kNarrow, 512, 8, 8, 16},
      {kCluster, kNarrow, 512, 8, 4, 16},
      {kCluster, kNarrow, 512, 16, 4, 16},
      {kCluster, kNarrow, 768, 8, 8, 16},
      {kCluster, kNarrow, 768, 16, 8, 16},
      {kCluster, kNarrow, 1024, 8, 8, 16},
      {kCluster, kNarrow, 1024, 16, 8, 16},
  });
  for (size_t i = 0; i < rows.size(); ++i) rows[i].place = static_cast<int>(i);
  return rows;
}();

constexpr const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::kTorch:
      return "torch";
    case Kernel::kStep:
      return "step";
    case Kernel::kVector:
      return "vector";
    case Kernel::kTile:
      return "tile";
    case Kernel::kCluster:
      return "cluster";
  }
  return "unknown";
}

// The kernel's name, with hidden units, rows and blocks of a group where it has groups:
// "cluster:1024x8x8".
inline std::string name_of(const Configuration& c) {
  const std::string name = name_of(c.kernel);
  if (!c.has_groups()) return name;
  const auto text = [](int x) { return std::to_string(x); };
  return name + ':' + text(c.units) + 'x' + text(c.rows) + 'x' + text(c.blocks);
}

}  // namespace fastrnn::cuda
