#include "cuda/choose.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "cuda/step_times.h"

namespace fastrnn::cuda {
namespace {

// Threads that a multiprocessor holds (CUDA C++ Programming Guide, "Compute Capabilities").
int threads_per_multiprocessor(int capability) {
  if (capability < 80) return 1024;
  return capability == 80 || (capability >= 90 && capability < 110) ? 2048 : 1536;
}

Choice choice_of(const Configuration& c) {
  const int place = static_cast<int>(&c - kConfigurations.data());
  if (!c.has_groups()) return {c.kernel, 0, 0, 0, 0, 0, 0, place};
  // The most that a thread can have with so many in a block.
  const int registers = std::min(65536 / c.threads() / 8 * 8, 255);
  return {c.kernel, c.rows, c.blocks, c.threads(), registers, c.shared_bytes(), c.units, place};
}

int groups_at_once(const Choice& c, const Device& device) {
  if (device.groups_at_once) return device.groups_at_once[c.configuration];
  return estimate_groups_at_once(c, device);
}

bool serves(const Configuration& c, const Problem& p, const Device& device) {
  if (!c.takes(p.dtype, p.tf32)) return false;
  if (c.kernel == Kernel::kTorch) return p.torch_can_serve;
  if (!c.has_groups()) return true;
  constexpr int64_t kMost = (int64_t{1} << 31) - 64;
  if (p.seq_len > kMost || p.batch > kMost || p.hidden_size > c.units) return false;
  if (c.kernel == Kernel::kCluster && device.compiled_for < 90) return false;
  if (c.on_tensor_cores() && device.compiled_for < (p.dtype == Dtype::kFloat16 ? 75 : 80))
    return false;
  const Choice choice = choice_of(c);
  return can_launch(choice, device) && groups_at_once(choice, device) >= 1;
}

// What a block needs for a step, as many times as blocks must wait for one another.
double step_time_of_groups(const Configuration& c, const Problem& p, const Device& device,
                           const StepTimes& k) {
  constexpr double kCyclesPerNanosecond = 1.7;
  const double H = c.units;
  const bool tensor = c.on_tensor_cores();
  const double rate = !tensor ? k.fma_rate : c.element_bytes() == 4 ? k.tf32_rate : k.narrow_rate;
  // Reads of shared memory: on tensor cores each warp all of the state. On FMA units at least a
  // cycle for each load of a warp, though 8 or 16 lanes share its 16 bytes.
  const double lanes = c.lanes(), warps = c.threads() / 32;
  const double state = c.rows * H * c.element_bytes();
  const double reads = tensor ? (warps * state + c.stored_bytes()) / k.shared_rate
                              : warps * c.rows * H / (4 * lanes) * k.warp_load;
  const double math = c.rows * H * H / c.blocks / rate;
  const double others = static_cast<double>(c.blocks - 1) / c.blocks;
  const double exchange = c.blocks == 1 ? 0 : k.cluster_hop + state * others / k.cluster_rate;
  // Each block's part of w_hh, loaded once for all steps.
  const double load = H * H / c.blocks / k.weights_rate / (p.seq_len > 1 ? p.seq_len : 1);
  const double cycles = exchange + (math > reads ? math : reads) + load;
  const double groups = static_cast<double>((p.batch + c.rows - 1) / c.rows) * p.num_directions;
  const int at_once = groups_at_once(choice_of(c), device);
  const double waves = static_cast<double>(int64_t(groups - 1) / at_once + 1);
  // Blocks that share a multiprocessor share its units, not its latencies.
  const double shared = groups * c.blocks / waves / device.multiprocessors;
  return waves * (k.latency + cycles * (shared > 1 ? shared : 1)) / kCyclesPerNanosecond;
}

// A GEMM and a kernel: launches, or for large sizes the product itself.
double step_time_of_steps(const Problem& p, const StepTimes& k) {
  const double work = static_cast<double>(p.batch) * p.num_directions * p.hidden_size;
  return k.launches + work * static_cast<double>(p.hidden_size) / k.product_rate;
}

// cuDNN takes steps one by one too. For large ones it is expected to be faster than our product and
// kernel, for the others slower; to be measured.
double step_time_of_torch(const Problem& p, const StepTimes& k) {
  const int64_t large = p.dtype == Dtype::kFloat32 ? 641 : 1025;
  return step_time_of_steps(p, k) * (p.hidden_size >= large ? k.torch_large : k.torch_small);
}

// Of the configurations with this name, or with this kernel, or of all, the fastest that serves.
const Configuration* fastest(const Problem& p, const Device& device, const std::string& name) {
  const Configuration* best = nullptr;
  double best_time = 0;
  for (const Configuration& c : kConfigurations) {
    if (!name.empty() && name != name_of(c.kernel) && name != name_of(c)) continue;
    if (!serves(c, p, device)) continue;
    const double time = step_time(c, p, device);
    if (best && time >= best_time) continue;
    best = &c;
    best_time = time;
  }
  return best;
}

bool is_kernel(const std::string& name) {
  return std::any_of(kConfigurations.begin(), kConfigurations.end(),
                     [&](const Configuration& c) { return name == name_of(c.kernel); });
}

[[noreturn]] void refuse(const Problem& p, const Device& device, const std::string& forced) {
  std::string names;
  for (const Configuration& c : kConfigurations)
    if (c.has_groups() && serves(c, p, device)) names += (names.empty() ? "" : ", ") + name_of(c);
  throw std::invalid_argument(
      "rnn: expected FASTRNN_CUDA_KERNEL to be torch, step, vector, tile or cluster, or a "
      "configuration that can serve this call (" +
      (names.empty() ? "here none" : names) + "), got " + forced);
}

}  // namespace

std::string name_of(const Choice& c) { return name_of(kConfigurations[c.configuration]); }

std::optional<Choice> choice_of(const Configuration& c, const Problem& problem,
                                const Device& device) {
  if (!serves(c, problem, device)) return std::nullopt;
  return choice_of(c);
}

int compiled_for(int capability, const std::string& architectures) {
  std::istringstream names(architectures);
  int best = 0, newest = 0;
  for (std::string name; names >> name;) {
    const int arch = std::stoi(name.substr(name.find('_') + 1));
    newest = std::max(newest, arch);
    const bool runs = name.back() == 'a' ? arch == capability
                                         : arch / 10 == capability / 10 && arch <= capability;
    if (runs) best = std::max(best, arch);
  }
  return best > 0 || newest > capability ? best : newest;
}

int blocks_at_once(const Choice& c, const Device& device) {
  const int by_registers = device.registers_per_multiprocessor / (c.threads * c.registers);
  const int by_shared = device.shared_per_multiprocessor / (c.shared_bytes + kReservedShared);
  const int by_threads = threads_per_multiprocessor(device.capability) / c.threads;
  return std::min({by_registers, by_shared, by_threads});
}

bool can_launch(const Choice& c, const Device& device) {
  if (c.units == 0) return true;  // no groups
  return c.threads <= 1024 && c.shared_bytes <= device.shared_per_block &&
         blocks_at_once(c, device) >= 1;
}

int estimate_groups_at_once(const Choice& c, const Device& device) {
  // A cluster takes half of a small device at most, so that one of its GPCs holds it.
  if (c.blocks > 1 && device.multiprocessors < 2 * c.blocks) return 0;
  return blocks_at_once(c, device) * device.multiprocessors / c.blocks;
}

double step_time(const Configuration& c, const Problem& p, const Device& device,
                 const StepTimes& k) {
  if (c.kernel == Kernel::kTorch) return step_time_of_torch(p, k);
  return c.has_groups() ? step_time_of_groups(c, p, device, k) : step_time_of_steps(p, k);
}

std::vector<Choice> configurations() {
  std::vector<Choice> all;
  for (const Configuration& c : kConfigurations)
    if (c.has_groups()) all.push_back(choice_of(c));
  return all;
}

Choice choose(const Problem& p, const Device& device, const std::string& forced) {
  const Configuration* const best = fastest(p, device, forced);
  if (best) return choice_of(*best);
  if (!is_kernel(forced)) refuse(p, device, forced);
  return choice_of(*fastest(p, device, name_of(Kernel::kStep)));
}

}  // namespace fastrnn::cuda
