// Small runs of the kernels that exchange data between threads, for ThreadSanitizer: a missing
// barrier ends the program with a report. All groups of a launch run together, both directions in
// one output. Arguments: the one kernel to run, "lengths" or "grads"; its hidden_size, if not 0; a
// fault that the report must show: "directions" or "rows", which then overlap, or a call that is
// left out (Planted).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/grads.h"
#include "cuda/launchers.h"
#include "cuda/step.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

constexpr int64_t kSteps = 5, kBatch = 3;
constexpr int64_t kOverlap = 8;  // elements, 16 bytes at least
const char* fault = "";

bool has_fault(const char* name) { return std::strcmp(fault, name) == 0; }

template <typename Direction>
Recurrence<Direction> recurrence_of(Dtype dtype, int64_t hidden_size, const int64_t* lengths) {
  Recurrence<Direction> r{};
  r.dtype = dtype;
  r.tf32 = true;
  r.hidden_size = hidden_size;
  r.rows.seq_len = kSteps;
  r.rows.batch = kBatch;
  r.rows.lengths = lengths;
  r.num_directions = 2;
  return r;
}

// Rows of many lengths, or that all have every step.
bool run(const char* kernel, Dtype dtype, int64_t hidden_size, bool whole) {
  const Device h200{90, 132, 227 << 10, 228 << 10, 65536};
  const int64_t some[kBatch] = {5, 2, 0}, size = kSteps * kBatch * 2 * hidden_size;
  const int64_t* lengths = whole ? nullptr : some;
  // Zeros of any type: what is computed does not matter here.
  std::vector<double> w(hidden_size * hidden_size), h(size), grad(size),
      state(4 * kBatch * hidden_size);
  auto f = recurrence_of<ForwardDirection>(dtype, hidden_size, lengths);
  auto b = recurrence_of<BackwardDirection>(dtype, hidden_size, lengths);
  const int64_t bytes = dtype == Dtype::kFloat32 ? 4 : 2;
  const int64_t row = 2 * hidden_size - (has_fault("rows") ? kOverlap : 0),
                second = hidden_size - (has_fault("directions") ? kOverlap : 0);
  for (int d = 0; d < 2; ++d) {
    const auto part = [&](std::vector<double>& x, int64_t i, int64_t count) {
      return static_cast<void*>(reinterpret_cast<char*>(x.data()) + i * count * bytes);
    };
    const Sequence output{part(h, d, second), kBatch * row, row};
    const Sequence grad_pre{part(grad, d, second), kBatch * row, row};
    void* hn = part(state, d, kBatch * hidden_size);
    void* grad_hx = part(state, 2 + d, kBatch * hidden_size);
    f.direction[d] = {d == 1, w.data(), nullptr, nullptr, nullptr, 0, output, output, {}, hn};
    b.direction[d] = {d == 1, w.data(), output, grad_pre, nullptr, grad_pre, grad_hx};
  }
  const Problem problem{dtype, false, true, kSteps, kBatch, hidden_size, 2};
  const Choice choice = choose(problem, h200, kernel);
  planted.copies = 0;
  if (std::string(name_of(choice.kernel)) != kernel) return false;
  const cudaError_t forward = forward_launcher(choice.kernel)(f, choice, {});
  const cudaError_t backward = backward_launcher(choice.kernel)(b, choice, {});
  std::printf("%s, hidden_size %d, %s: %d %d\n", kernel, static_cast<int>(hidden_size),
              whole ? "whole" : "lengths", forward, backward);
  return forward == cudaSuccess && backward == cudaSuccess && (planted.copies > 0) == whole;
}

bool run_lengths() {
  const int64_t lengths[] = {2, 0, 5, 2, 3};
  const std::vector<int64_t> right{2, 4, 0, 3, 1};
  std::vector<int64_t> checked(5), order(5);
  const cudaError_t error =
      launch_check_lengths(lengths, 5, kSteps, checked.data(), order.data(), {});
  std::printf("lengths: %d\n", error);
  return error == cudaSuccess && order == right;
}

// Rows of many lengths, reset at every step.
bool run_grads() {
  constexpr int64_t kUnits = 9, kFeatures = 3;
  const int64_t lengths[kBatch] = {5, 2, 0};
  const bool reset = true;
  std::vector<float> x(kSteps * kBatch * kUnits), hx(kBatch * kUnits), w(kUnits * kUnits),
      b(kUnits);
  const Sequence all{x.data(), kBatch * kUnits, kUnits};
  WeightGrads task{.dtype = Dtype::kFloat32,
                   .rows = {kSteps, kBatch, lengths, nullptr, nullptr, &reset, 0, 0},
                   .input_size = kFeatures,
                   .hidden_size = kUnits,
                   .input = all,
                   .num_directions = 1,
                   .direction = {}};
  std::vector<float> w_ih(kUnits * kFeatures), b_hh(kUnits);
  task.direction[0] = {false,       all,      all,      hx.data(),  kUnits,
                       w_ih.data(), w.data(), b.data(), b_hh.data()};
  const cudaError_t error = launch_weight_grads(task, {});
  std::printf("grads: %d\n", error);
  return error == cudaSuccess;
}

bool run_packed_rows() {
  const int64_t lengths[kBatch] = {300, 299, 2};
  std::vector<int64_t> rows(kBatch + 300);
  const int64_t* const start = rows.data() + kBatch;
  const cudaError_t error = launch_packed_rows(lengths, kBatch, 300, rows.data(), {});
  return error == cudaSuccess && rows[0] == 300 && start[2] == 6 && start[299] == 600 - 2 + 2;
}

}  // namespace

int main(int count, char** arguments) {
  struct {
    const char* kernel;
    Dtype dtype;
    int64_t hidden_size;
    bool whole;
  } runs[] = {
      {"vector", Dtype::kFloat32, 60, false},    {"vector", Dtype::kFloat32, 190, true},
      {"tile", Dtype::kFloat32, 64, false},      {"tile", Dtype::kFloat32, 62, true},
      {"tile", Dtype::kBFloat16, 250, false},    {"tile", Dtype::kBFloat16, 248, true},
      {"cluster", Dtype::kFloat32, 200, false},  {"cluster", Dtype::kFloat32, 200, true},
      {"cluster", Dtype::kBFloat16, 300, false}, {"cluster", Dtype::kBFloat16, 304, true},
      {"cluster", Dtype::kFloat16, 500, false},
  };
  const auto asked = [&](const char* kernel) {
    return count < 2 || std::string(kernel) == arguments[1];
  };
  const int64_t only = count > 2 ? std::atoi(arguments[2]) : 0;
  if (count > 3) fault = arguments[3];
  if (!has_fault("rows") && !has_fault("directions")) planted.missing = fault;
  planted.together = true;
  bool ok = run_packed_rows();
  if (asked("lengths")) ok = run_lengths() && ok;
  if (asked("grads")) ok = run_grads() && ok;
  for (const auto& r : runs)
    if (asked(r.kernel) && (!only || only == r.hidden_size))
      ok = run(r.kernel, r.dtype, r.hidden_size, r.whole) && ok;
  if (*planted.missing && !planted.missed) std::puts("no such call");
  return ok ? 0 : 1;
}
