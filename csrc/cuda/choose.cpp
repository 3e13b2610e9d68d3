// Takes the fastest of what can serve a call on a device, our configurations and cuDNN, by
// estimates of a step's time (times.h).
#include "cuda/choose.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "cuda/times.h"

namespace fastrnn::cuda {
namespace {

// Threads that a multiprocessor holds (CUDA C++ Programming Guide, "Compute Capabilities").
int threads_per_multiprocessor(int capability) {
  if (capability < 80) return 1024;
  return capability == 80 || (capability >= 90 && capability < 110) ? 2048 : 1536;
}

Choice choice_of(const Configuration& c) {
  if (!c.has_groups()) return {.kernel = c.kernel, .configuration = c.place};
  return {.kernel = c.kernel,
          .rows = c.rows,
          .blocks = c.blocks,
          .threads = c.threads(),
          // The most that a thread can have with so many in a block.
          .registers = std::min(65536 / c.threads() / 8 * 8, 255),
          .shared_bytes = c.shared_bytes(),
          .units = c.units,
          .configuration = c.place};
}

int groups_at_once(const Choice& c, const Device& device) {
  if (device.groups_at_once) return device.groups_at_once[c.configuration];
  return estimate_groups_at_once(c, device);
}

bool serves(const Configuration& c, const Problem& p, const Device& device) {
  if (!c.takes(p.dtype, p.tf32)) return false;
  if (c.kernel == Kernel::kTorch) return p.torch_can_serve;
  if (!c.has_groups()) return true;
  if (p.leaks) return false;
  constexpr int64_t kMost = (int64_t{1} << 31) - 64;
  if (p.seq_len > kMost || p.batch > kMost || p.hidden_size > c.units) return false;
  if (c.kernel == Kernel::kCluster && device.compiled_for < 90) return false;
  if (c.on_tensor_cores() && device.compiled_for < (p.dtype == Dtype::kFloat16 ? 75 : 80))
    return false;
  const Choice choice = choice_of(c);
  return can_launch(choice, device) && groups_at_once(choice, device) >= 1;
}

// What is done once per call, as a share of each step.
double of_each_step(double nanoseconds, const Problem& p) {
  return nanoseconds / static_cast<double>(std::max<int64_t>(p.seq_len, 1));
}

// Groups that do not run at once come in waves, one after the other. The last one lies between one
// group alone and a full wave. Each loads its blocks' parts of w_hh once for all steps.
double step_time_of_groups(const Configuration& c, const Problem& p, const Device& device) {
  constexpr double kLoaded = 7;  // elements a nanosecond, into a block; an estimate
  const int64_t groups = (p.batch + c.rows - 1) / c.rows * p.num_directions;
  const int at_once = groups_at_once(choice_of(c), device);
  const auto waves = static_cast<double>(groups / at_once);
  const auto rest = static_cast<double>(groups % at_once);
  const double load = of_each_step(c.units * c.units / c.blocks / kLoaded, p);
  const Times& t = times_of(c);
  const double last =
      rest > 0 ? t.alone + (t.full - t.alone) * (rest - 1) / (at_once - 1) + load : 0;
  return waves * (t.full + load) + last;
}

// A GEMM and a kernel: launches and, for large sizes, the product, at about half of an H200's peak.
// There a step of 64 rows and 1024 units in TF32, 8.7 us by this, took 9 us captured and 15 eager
// with its share of the input's product (benchmarks/results/gpu-h200.json). The first step needs no
// GEMM without hx, and one launch of a call the others need as well.
double step_time_of_steps(const Problem& p) {
  constexpr double kLaunch = 4000, kExactRate = 20000, kTensorRate = 100000;  // ns, products a ns
  constexpr double kPointwise = 1500;                                         // ns, of one kernel
  const bool exact = p.dtype == Dtype::kFloat64 || (p.dtype == Dtype::kFloat32 && !p.tf32);
  const double H = static_cast<double>(p.hidden_size), rows = static_cast<double>(p.batch);
  const double product = rows * p.num_directions * H * H / (exact ? kExactRate : kTensorRate);
  const double step = 2 * kLaunch + product;
  const double spared = kLaunch - kPointwise + (p.has_hx ? 0 : kLaunch + product);
  return step - of_each_step(spared, p);
}

// cuDNN's, near what nn.RNN took on an H200 (benchmarks/results/gpu-h200.json): where a kernel
// stays on the GPU for all steps, 0.3 us at H 64, 1 to 2 us at H 256, 4 us in float16 up to H 1024;
// else 13 to 23 us, of launches for each step. A call took 50 us more than one of ours.
double step_time_of_torch(const Problem& p) {
  const double H = static_cast<double>(p.hidden_size), call = of_each_step(50000, p);
  const double rows = static_cast<double>(p.batch) * p.num_directions;
  const bool single = p.dtype == Dtype::kFloat32, half = p.dtype == Dtype::kFloat16;
  const bool even = p.hidden_size % 128 == 0 && p.batch % 8 == 0;
  if (!p.packed && single && H <= 256) return call + 250 + H * H / 45 * (1 + rows / 200);
  if (!p.packed && half && H <= 256) return call + 450 + 2.5 * H + rows * H / 400;
  if (!p.packed && half && rows < 96 && H <= (even ? 1024 : 384)) return call + 4000;
  return call + 10000 + step_time_of_steps(p);
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
      (names.empty() ? "none here" : names) + "), got " + forced);
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

double step_time(const Configuration& c, const Problem& p, const Device& device) {
  if (c.kernel == Kernel::kTorch) return step_time_of_torch(p);
  return c.has_groups() ? step_time_of_groups(c, p, device) : step_time_of_steps(p);
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
