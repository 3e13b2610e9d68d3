// Every configuration of the CUDA kernels without torch: lists, checks and times them.
//
//   kernels list                      lines such as "cluster:512x8x8 float16"
//   kernels check [NAME DTYPE ROWS]   of check.h: whole, packed, lengths, marks, bare, full
//   kernels time [NAME DTYPE]
//
// check and time print a line of JSON for each result and end with status 1 where one is wrong.
// What hangs or stops the device takes the rest of its process with it: give checks processes of
// their own. From the root of the project, for the GPU that is there, and for the CPU by the tests'
// emulation:
//
//   nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=native -cudart static -Icsrc
//     benchmarks/gpu/kernels.cpp csrc/cuda/{choose,runtime}.cpp csrc/cuda/*.cu -o build/kernels
//   g++ -std=c++20 -O1 -DFASTRNN_ON_CPU -ffp-contract=off -Icsrc -Itests/gpu/on_cpu
//     benchmarks/gpu/kernels.cpp csrc/cuda/choose.cpp tests/gpu/on_cpu/{kernels,fibers,banks}.cpp
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>

#include "cuda/check.h"
#include "cuda/launchers.h"
#if !defined(FASTRNN_ON_CPU)
#include "cuda/occupancy.h"
#endif

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// How much a run is timed over; emulated, just enough to see that it runs.
#if defined(FASTRNN_ON_CPU)
constexpr int64_t kTimedSteps = 12, kTimedBytes = 1 << 20;

void* allocate(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
void release(void* p) { std::free(p); }
Device current_device() { return {90, 16, 227 << 10, 228 << 10, 65536}; }
int groups_that_run(const Choice& c, const Device& d) { return estimate_groups_at_once(c, d); }
#else
constexpr int64_t kTimedSteps = 768, kTimedBytes = 512 << 20;

void* allocate(size_t bytes) {
  void* p = nullptr;
  check_cuda(cudaMalloc(&p, bytes), "cudaMalloc");
  return p;
}
void release(void* p) { cudaFree(p); }
Device current_device() {
  Device device{};
  std::vector<int> groups;
  std::string name;
  check_cuda(describe(0, &device, &groups, &name), "looking for kernels");
  device.groups_at_once = nullptr;  // estimated, to be printed beside what the driver says
  return device;
}
int groups_that_run(const Choice& c, const Device& d) { return groups_at_once(c, d); }
#endif

// Memory of the device.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : data_(static_cast<char*>(allocate(bytes))) {}
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* get() const { return data_; }

 private:
  char* data_;
};

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }
// The first members of a line of JSON.
std::string json_of(const Variant& v) {
  return "\"name\": \"" + name_of(v.choice) + "\", \"dtype\": \"" + name_of(v.dtype) + "\"";
}

bool check_and_print(const Variant& v, const Trial& trial) {
  const Buffer workspace(check_bytes(v));
  const Verdict found = check_variant(v, trial, workspace.get(), {});
  std::printf("{%s, \"rows\": \"%s\", ", json_of(v).c_str(), trial.name);
  if (found.error != cudaSuccess || found.timed_out || found.gave_up.yes ||
      found.compared != found.to_compare) {
    std::printf("\"failed\": \"%s\"}\n", found.fault().c_str());
  } else {
    std::printf("\"right\": %s, \"error\": %.2g, \"allowed\": %.2g, \"worst\": \"%s\"}\n",
                found.is_right() ? "true" : "false", std::min(found.worst, 1e300), found.allowed,
                found.where.c_str());
  }
  std::fflush(stdout);
  if (found.timed_out) std::_Exit(1);  // nothing that waits for the device would end
  return found.is_right();
}

template <typename Direction>
Recurrence<Direction> recurrence_of(const Variant& v, const Rows& rows) {
  return {v.dtype, Nonlinearity::kTanh, v.tf32(), v.choice.units, rows, 1, {}, nullptr};
}
void run(const ForwardRecurrence& r, const Choice& c) {
  check_cuda(forward_launcher(c.kernel)(r, c, {}), "launching forward");
}
void run(const BackwardRecurrence& r, const Choice& c) {
  check_cuda(backward_launcher(c.kernel)(r, c, {}), "launching backward");
}

// Nanoseconds of a step of `groups` groups: the slope between two lengths, so that the launch and
// the loading of the weights fall out. The best of several runs.
template <typename R>
double step_time(R r, const Choice& c, int64_t seq_len) {
  const auto best = [&](int64_t steps) {
    r.rows.seq_len = steps;
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 5; ++i) {
      check_cuda(cudaStreamSynchronize({}), "the kernel");
      const auto begin = std::chrono::steady_clock::now();
      run(r, c);
      check_cuda(cudaStreamSynchronize({}), "the kernel");
      const std::chrono::duration<double, std::nano> took =
          std::chrono::steady_clock::now() - begin;
      if (i > 0) least = std::min(least, took.count());
    }
    return least;
  };
  return (best(seq_len) - best(seq_len / 3)) / static_cast<double>(seq_len - seq_len / 3);
}

// One group alone, half of what the device holds at a time, all of it, and twice that.
void time(const Variant& v) {
  constexpr int64_t kFewestSteps = 6;
  const Choice& c = v.choice;
  const int64_t H = c.units, bytes = bytes_of(v.dtype);
  if (!forward_launcher(c.kernel)) return;
  const int at_once = groups_that_run(c, current_device());
  if (at_once < 1) return;
  // Weights of zero, and numbers that do not matter.
  const Buffer w(H * H * bytes), x(kTimedBytes), y(kTimedBytes), hn(kTimedBytes / kFewestSteps);
  check_cuda(cudaMemsetAsync(w.get(), 0, H * H * bytes, {}), "cudaMemset");
  check_cuda(cudaMemsetAsync(x.get(), 0x31, kTimedBytes, {}), "cudaMemset");  // small, in any type
  for (const double share : {0.0, 0.5, 1.0, 2.0}) {
    const int64_t groups = std::max<int64_t>(1, static_cast<int64_t>(share * at_once));
    const int64_t B = groups * c.rows, T = std::min(kTimedSteps, kTimedBytes / (B * H * bytes));
    if (T < kFewestSteps) continue;
    const Rows rows{T, B, nullptr, nullptr, nullptr, nullptr, 0, 0};
    const Sequence from{x.get(), B * H, H}, to{y.get(), B * H, H};
    auto forward = recurrence_of<ForwardDirection>(v, rows);
    auto backward = recurrence_of<BackwardDirection>(v, rows);
    forward.direction[0] = {false, w.get(), nullptr, nullptr, nullptr, 0, from, to, {}, hn.get()};
    backward.direction[0] = {false, w.get(), from, from, nullptr, to, nullptr};
    const double ns[] = {step_time(forward, c, T), step_time(backward, c, T)};
    for (const int pass : {0, 1})
      std::printf(
          "{%s, \"pass\": \"%s\", \"groups\": %d, \"at_once\": %d, \"estimated_at_once\": %d, "
          "\"steps\": %d, \"ns\": %.1f}\n",
          json_of(v).c_str(), pass ? "backward" : "forward", static_cast<int>(groups), at_once,
          estimate_groups_at_once(c, current_device()), static_cast<int>(T), ns[pass]);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int count, char** words) {
  const auto word = [&](int i) { return std::string(i < count ? words[i] : ""); };
  const auto asked = [&](int i, const std::string& x) { return i >= count || word(i) == x; };
  bool found = false, right = true;
  std::string running;
  try {
    for (const Variant& v : variants(current_device())) {
      if (!asked(2, name_of(v.choice)) || !asked(3, name_of(v.dtype))) continue;
      running = json_of(v) + ", ";
      if (word(1) == "list") {
        std::printf("%s %s\n", name_of(v.choice).c_str(), name_of(v.dtype));
        found = true;
      } else if (word(1) == "time") {
        time(v);
        found = true;
      } else if (word(1) == "check") {
        for (const Trial& trial : kTrials) {
          if (!asked(4, trial.name)) continue;
          right = check_and_print(v, trial) && right;
          found = true;
        }
      }
    }
  } catch (const std::exception& e) {  // the device may serve no more
    std::printf("{%s\"failed\": \"%s\"}\n", running.c_str(), e.what());
    return 1;
  }
  if (!found)
    std::fputs(
        "usage: kernels list | check [NAME DTYPE ROWS] | time [NAME DTYPE]\n"
        "       a NAME and DTYPE of the list; ROWS whole, packed, lengths, marks, bare or full\n",
        stderr);
  return found && right ? 0 : 1;
}
