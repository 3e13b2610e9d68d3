#include "cuda/choose.h"

namespace fastrnn::cuda {
namespace {

// One line for each configuration that tile.cu and vector.cu have. Registers are the most that a
// thread can have with so many in a block; make cuda-check shows what each takes.
struct BlockKernel {
  Kernel kernel;
  int element_bytes;  // of the storage type
  int hidden_size;    // at most
  int rows;
  int threads;
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
};

constexpr Choice kSteps{Kernel::kStep, 0, 0, 0, 0, 0, 0, 0};

int element_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// Blocks of one kernel that a multiprocessor holds at a time.
int resident(const Choice& c, const Device& device) {
  const int by_registers = device.registers_per_multiprocessor / (c.threads * c.registers);
  constexpr int kReserved = 1 << 10;  // shared memory of the system's own, for each block
  const int by_shared = device.shared_per_multiprocessor / (c.shared_bytes + kReserved);
  const int by_threads = (device.capability == 75 ? 1024 : 1536) / c.threads;
  int blocks = by_registers < by_shared ? by_registers : by_shared;
  return blocks < by_threads ? blocks : by_threads;
}

Choice configuration(const BlockKernel& k) {
  const bool tile = k.kernel == Kernel::kTile;
  const int most = 65536 / k.threads, registers = most / 8 * 8 < 255 ? most / 8 * 8 : 255;
  const int row_bytes = k.hidden_size * k.element_bytes + (tile ? 16 : 0);
  return {k.kernel, k.rows, 1, k.threads, registers, 2 * k.rows * row_bytes, 0, k.hidden_size};
}

bool serves(const BlockKernel& k, const Problem& p, const Device& device) {
  if (k.element_bytes != element_bytes(p.dtype) || p.hidden_size > k.hidden_size) return false;
  if (k.kernel == Kernel::kVector) return true;
  // There the compiler spills this one's registers.
  if (k.hidden_size == 256 && device.capability >= 120) return false;
  if (p.dtype == Dtype::kFloat32) return p.tf32 && device.capability >= 80;
  return device.capability >= (p.dtype == Dtype::kFloat16 ? 75 : 80);
}

// Estimated nanoseconds of a step of all rows: what a block needs for one, as many times as blocks
// must wait for one another. The constants are estimates from published latencies (170 cycles for
// loads, shuffles, tanh and the barrier; 128 FMAs and 512 or 1024 tensor multiply-adds a cycle, in
// mma.sync's practice); to be measured.
double step_time(const BlockKernel& k, const Choice& c, const Problem& p, const Device& device) {
  const double H = k.hidden_size;
  const double rate = k.kernel == Kernel::kVector ? 100 : k.element_bytes == 4 ? 300 : 600;
  // At least the reads of the state: 128 bytes a cycle for each warp that reads all of it.
  const double reads = k.kernel == Kernel::kTile
                           ? k.threads / 32 * (k.rows * H * k.element_bytes) / 128
                           : k.threads / 32 * k.rows * (H * 4) / (k.threads == 384 ? 2 : 4) / 128;
  const double math = k.rows * H * H / rate;
  const double cycles = 170 + (math > reads ? math : reads);
  const double groups = static_cast<double>((p.batch + k.rows - 1) / k.rows) * p.num_directions;
  const int at_once = resident(c, device) * device.multiprocessors;
  const double waves = at_once == 0 ? 1e9 : static_cast<double>(int64_t(groups - 1) / at_once + 1);
  // Blocks that share a multiprocessor share its units, not its latencies.
  const double shared = groups / waves / device.multiprocessors;
  return waves * (170 + (cycles - 170) * (shared > 1 ? shared : 1)) / 1.7;
}

// A GEMM and a kernel: launches, or for large sizes the product itself.
double step_time_of_steps(const Problem& p) {
  constexpr double kLaunches = 5000, kMultiplyAddsPerNanosecond = 15000;
  const double work = static_cast<double>(p.batch) * p.num_directions * p.hidden_size;
  return kLaunches + work * static_cast<double>(p.hidden_size) / kMultiplyAddsPerNanosecond;
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
    case Kernel::kGrid:
      return "grid";
  }
  return "unknown";
}

bool can_launch(const Choice& c, const Device& device) {
  if (c.kernel == Kernel::kStep) return true;
  return c.threads <= 1024 && c.shared_bytes <= device.shared_per_block && resident(c, device) >= 1;
}

Choice choose(const Problem& p, const Device& device, const std::string& forced) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 64;
  if (p.seq_len > kMost || p.batch > kMost) return kSteps;
  Choice best = kSteps;
  double best_time = forced.empty() ? step_time_of_steps(p) : 1e300;
  for (const BlockKernel& k : kBlockKernels) {
    const Choice c = configuration(k);
    if (!serves(k, p, device) || !can_launch(c, device)) continue;
    if (!forced.empty() && forced != name_of(k.kernel)) continue;
    const double time = step_time(k, c, p, device);
    if (time < best_time) {
      best = c;
      best_time = time;
    }
  }
  return best;
}

}  // namespace fastrnn::cuda
