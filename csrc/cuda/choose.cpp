#include "cuda/choose.h"

#include <algorithm>
#include <stdexcept>

namespace fastrnn::cuda {
namespace {

// One line for each configuration that tile.cu, vector.cu and cluster.cu have. Registers are the
// most that a thread can have with so many in a block; make cuda-check shows what each takes. With
// 8 rows and more, the products are the tensor cores'.
struct BlockKernel {
  Kernel kernel;
  int element_bytes;  // of the storage type
  int hidden_size;    // at most
  int rows;
  int threads;
  int blocks = 1;
};

constexpr BlockKernel kBlockKernels[] = {
    // kernel        bytes  H   rows threads
    {Kernel::kVector, 4, 64, 1, 256},   //
    {Kernel::kVector, 4, 64, 2, 256},   //
    {Kernel::kVector, 4, 64, 4, 256},   //
    {Kernel::kVector, 4, 128, 1, 512},  //
    {Kernel::kVector, 4, 128, 2, 512},  //
    {Kernel::kVector, 4, 128, 4, 512},  //
    {Kernel::kVector, 4, 192, 1, 384},  //
    {Kernel::kVector, 4, 192, 2, 384},  //
    {Kernel::kTile, 4, 64, 8, 128},     // TF32
    {Kernel::kTile, 4, 128, 8, 256},    //
    {Kernel::kTile, 4, 160, 8, 320},    //
    {Kernel::kTile, 2, 64, 8, 128},     //
    {Kernel::kTile, 2, 64, 16, 128},    //
    {Kernel::kTile, 2, 128, 8, 256},    //
    {Kernel::kTile, 2, 128, 16, 256},   //
    {Kernel::kTile, 2, 192, 8, 384},    //
    {Kernel::kTile, 2, 256, 8, 256},    //
    {Kernel::kCluster, 4, 256, 1, 512, 2},   {Kernel::kCluster, 4, 256, 2, 512, 2},
    {Kernel::kCluster, 4, 256, 4, 512, 2},   {Kernel::kCluster, 4, 384, 1, 384, 4},
    {Kernel::kCluster, 4, 384, 2, 384, 4},   {Kernel::kCluster, 4, 384, 4, 384, 4},
    {Kernel::kCluster, 4, 512, 1, 256, 8},   {Kernel::kCluster, 4, 512, 2, 256, 8},
    {Kernel::kCluster, 4, 512, 4, 256, 8},   {Kernel::kCluster, 4, 256, 8, 256, 2},  // TF32
    {Kernel::kCluster, 4, 384, 8, 192, 4},   {Kernel::kCluster, 4, 512, 8, 128, 8},
    {Kernel::kCluster, 2, 384, 8, 192, 4},   {Kernel::kCluster, 2, 384, 16, 192, 4},
    {Kernel::kCluster, 2, 512, 8, 128, 8},   {Kernel::kCluster, 2, 512, 8, 256, 4},
    {Kernel::kCluster, 2, 512, 16, 256, 4},  {Kernel::kCluster, 2, 768, 8, 192, 8},
    {Kernel::kCluster, 2, 768, 16, 192, 8},  {Kernel::kCluster, 2, 1024, 8, 256, 8},
    {Kernel::kCluster, 2, 1024, 16, 256, 8},
};

bool on_tensor_cores(const BlockKernel& k) { return k.rows >= 8; }

// Shared memory for what registers of a cluster's threads do not hold of w_hh, as in cluster.cu.
int stored_bytes(const BlockKernel& k) {
  const int fragments = k.hidden_size * k.element_bytes / 32, kept = k.rows > 8 ? 26 : 28;
  if (k.kernel != Kernel::kCluster || !on_tensor_cores(k) || fragments <= kept) return 0;
  return (fragments - kept) * k.threads * 16;
}

constexpr Choice kSteps{Kernel::kStep, 0, 0, 0, 0, 0, 0};

int element_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// Threads that a multiprocessor holds (CUDA C++ Programming Guide, "Compute Capabilities").
int threads_per_multiprocessor(int capability) {
  if (capability < 80) return 1024;
  return capability == 80 || (capability >= 90 && capability < 110) ? 2048 : 1536;
}

Choice configuration(const BlockKernel& k) {
  const int most = 65536 / k.threads, registers = most / 8 * 8 < 255 ? most / 8 * 8 : 255;
  const int row_bytes = k.hidden_size * k.element_bytes + (on_tensor_cores(k) ? 16 : 0);
  const int barriers = k.kernel == Kernel::kCluster ? 16 : 0;
  const int shared = 2 * k.rows * row_bytes + stored_bytes(k) + barriers;
  return {k.kernel, k.rows, k.blocks, k.threads, registers, shared, k.hidden_size};
}

int groups_at_once(const BlockKernel& k, const Choice& c, const Device& device) {
  if (device.groups_at_once) return device.groups_at_once[&k - kBlockKernels];
  return estimate_groups_at_once(c, device);
}

bool serves(const BlockKernel& k, const Choice& c, const Problem& p, const Device& device) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 64;
  if (p.seq_len > kMost || p.batch > kMost || p.hidden_size > k.hidden_size) return false;
  if (k.element_bytes != element_bytes(p.dtype) || !can_launch(c, device)) return false;
  if (k.kernel == Kernel::kCluster && device.capability < 90) return false;
  if (groups_at_once(k, c, device) < 1) return false;
  if (!on_tensor_cores(k)) return true;
  if (p.dtype == Dtype::kFloat32) return p.tf32 && device.capability >= 80;
  return device.capability >= (p.dtype == Dtype::kFloat16 ? 75 : 80);
}

// Estimated nanoseconds of a step of all rows: what a block needs for one, as many times as blocks
// must wait for one another. The constants are estimates from published latencies (170 cycles for
// loads, shuffles, tanh and the barrier; 128 FMAs and 512 or 1024 tensor multiply-adds a cycle, in
// mma.sync's practice; for clusters a hop of 300 cycles, and 18 bytes a cycle into each block); to
// be measured.
double step_time(const BlockKernel& k, const Choice& c, const Problem& p, const Device& device) {
  const double H = k.hidden_size;
  const bool tensor = on_tensor_cores(k);
  const double rate = !tensor ? 100 : k.element_bytes == 4 ? 300 : 600;
  // Reads of shared memory: on tensor cores 128 bytes a cycle, each warp all of the state. On FMA
  // units at least a cycle for each load of a warp, though 8 or 16 lanes share its 16 bytes.
  const double lanes = k.hidden_size == 192 ? 2 : 4, warps = k.threads / 32;
  const double state = k.rows * H * k.element_bytes;
  const double reads =
      tensor ? (warps * state + stored_bytes(k)) / 128 : warps * k.rows * H / (4 * lanes);
  const double math = k.rows * H * H / k.blocks / rate;
  const double others = static_cast<double>(k.blocks - 1) / k.blocks;
  const double exchange = k.blocks == 1 ? 0 : 300 + state * others / 18;
  // Each block's part of w_hh, loaded once for all steps.
  const double load = H * H / k.blocks / 4 / (p.seq_len > 1 ? p.seq_len : 1);
  const double cycles = exchange + (math > reads ? math : reads) + load;
  const double groups = static_cast<double>((p.batch + k.rows - 1) / k.rows) * p.num_directions;
  const int at_once = groups_at_once(k, c, device);
  const double waves = static_cast<double>(int64_t(groups - 1) / at_once + 1);
  // Blocks that share a multiprocessor share its units, not its latencies.
  const double shared = groups * k.blocks / waves / device.multiprocessors;
  return waves * (170 + cycles * (shared > 1 ? shared : 1)) / 1.7;
}

// A GEMM and a kernel: launches, or for large sizes the product itself.
double step_time_of_steps(const Problem& p) {
  constexpr double kLaunches = 5000, kMultiplyAddsPerNanosecond = 15000;
  const double work = static_cast<double>(p.batch) * p.num_directions * p.hidden_size;
  return kLaunches + work * static_cast<double>(p.hidden_size) / kMultiplyAddsPerNanosecond;
}

[[noreturn]] void refuse(const Problem& p, const Device& device, const std::string& forced) {
  std::string names;
  for (const BlockKernel& k : kBlockKernels) {
    const Choice c = configuration(k);
    if (serves(k, c, p, device)) names += (names.empty() ? "" : ", ") + name_of(c);
  }
  throw std::invalid_argument(
      "rnn: expected FASTRNN_CUDA_KERNEL to be step, vector, tile or cluster, or a configuration "
      "that can serve this call (" +
      (names.empty() ? "here none" : names) + "), got " + forced);
}

}  // namespace

const char* name_of(Kernel kernel) {
  switch (kernel) {
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

std::string name_of(const Choice& c) {
  std::string name = name_of(c.kernel);
  if (c.kernel != Kernel::kStep) {
    name += ':' + std::to_string(c.units) + 'x' + std::to_string(c.rows) + 'x' +
            std::to_string(c.blocks);
  }
  return name;
}

int blocks_at_once(const Choice& c, const Device& device) {
  const int by_registers = device.registers_per_multiprocessor / (c.threads * c.registers);
  const int by_shared = device.shared_per_multiprocessor / (c.shared_bytes + kReservedShared);
  const int by_threads = threads_per_multiprocessor(device.capability) / c.threads;
  return std::min({by_registers, by_shared, by_threads});
}

bool can_launch(const Choice& c, const Device& device) {
  if (c.kernel == Kernel::kStep) return true;
  return c.threads <= 1024 && c.shared_bytes <= device.shared_per_block &&
         blocks_at_once(c, device) >= 1;
}

int estimate_groups_at_once(const Choice& c, const Device& device) {
  // A cluster takes half of a small device at most, so that one of its GPCs holds it.
  if (c.blocks > 1 && device.multiprocessors < 2 * c.blocks) return 0;
  return blocks_at_once(c, device) * device.multiprocessors / c.blocks;
}

std::vector<Choice> configurations() {
  std::vector<Choice> all;
  for (const BlockKernel& k : kBlockKernels) all.push_back(configuration(k));
  return all;
}

Choice choose(const Problem& p, const Device& device, const std::string& forced) {
  Choice best = kSteps;
  double best_time = forced.empty() ? step_time_of_steps(p) : 1e300;
  for (const BlockKernel& k : kBlockKernels) {
    const Choice c = configuration(k);
    if (!forced.empty() && forced != name_of(k.kernel) && forced != name_of(c)) continue;
    if (!serves(k, c, p, device)) continue;
    const double time = step_time(k, c, p, device);
    if (time < best_time) {
      best = c;
      best_time = time;
    }
  }
  const bool has_kernel_name =
      forced == "step" || forced == "vector" || forced == "tile" || forced == "cluster";
  if (best.kernel == Kernel::kStep && !forced.empty() && !has_kernel_name)
    refuse(p, device, forced);
  return best;
}

}  // namespace fastrnn::cuda
