// Every configuration of the CUDA kernels without torch: lists, checks and times them.
//
//   kernels list                      lines such as "cluster:512x8x8 float16"
//   kernels check [NAME DTYPE ROWS]   whole | packed | lengths | marks (lengths and resets)
//   kernels time [NAME DTYPE]
//
// check and time print a line of JSON for each result and end with status 1 where one is wrong.
// What hangs or stops the device takes the rest of its process with it: give checks processes of
// their own. From the root of the project, for the GPU that is there, and for the CPU by the tests'
// emulation:
//
//   nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=native -cudart static -Icsrc
//     benchmarks/gpu/kernels.cpp csrc/cuda/choose.cpp csrc/cuda/*.cu -o build/kernels
//   g++ -std=c++20 -O1 -DFASTRNN_ON_CPU -ffp-contract=off -Icsrc -Itests/cuda_on_cpu
//     benchmarks/gpu/kernels.cpp csrc/cuda/choose.cpp tests/cuda_on_cpu/{kernels,fibers}.cpp
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <numeric>

#include "cuda/launchers.h"
#include "values.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

struct Variant {
  Choice choice;
  Dtype dtype;
  bool tf32;
};

// How much a run is timed over; emulated, just enough to see that it runs.
#if defined(FASTRNN_ON_CPU)
constexpr int64_t kTimedSteps = 12, kTimedBytes = 1 << 20;
#else
constexpr int64_t kTimedSteps = 768, kTimedBytes = 512 << 20;
#endif

std::string dtype_name(Dtype dtype) {
  const char* const names[] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(dtype)];
}
// The first members of a line of JSON.
std::string json_of(const Variant& v) {
  return "\"name\": \"" + name_of(v.choice) + "\", \"dtype\": \"" + dtype_name(v.dtype) + "\"";
}

template <typename Direction>
Recurrence<Direction> recurrence_of(const Variant& v, int64_t hidden_size, const Rows& rows,
                                    int num_directions, bool relu) {
  return {v.dtype, relu ? Nonlinearity::kRelu : Nonlinearity::kTanh,
          v.tf32,  hidden_size,
          rows,    num_directions,
          {}};
}
void run(const ForwardRecurrence& r, const Choice& c) {
  check_cuda(forward_launcher(c.kernel)(r, c, {}), "launching forward");
}
void run(const BackwardRecurrence& r, const Choice& c) {
  check_cuda(backward_launcher(c.kernel)(r, c, {}), "launching backward");
}

// Rows of many lengths, the first of which has every step; packed, the longest come first.
struct Layout {
  bool packed, has_reset;
  int64_t seq_len = 5, batch, count = 0;
  std::vector<int64_t> lengths, start, order;
  std::vector<char> reset;

  Layout(const std::string& rows, int64_t batch)
      : packed(rows == "packed"), has_reset(rows == "marks"), batch(batch), order(batch) {
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t some =
          packed ? std::max<int64_t>(seq_len - (b + 1) / 2, 1) : b * 4 % (seq_len + 1);
      lengths.push_back(rows == "whole" || b == 0 ? seq_len : some);
    }
    for (int64_t t = 0; t < seq_len; ++t) {
      start.push_back(count);
      for (int64_t b = 0; b < batch; ++b) {
        count += !packed || lengths[b] > t;
        reset.push_back(has_reset && (t + 2 * b) % 3 == 0);
      }
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  }
  int64_t row(int64_t t, int64_t b) const { return packed ? start[t] + b : t * batch + b; }
  // Step i of row b's walk, and whether a sequence begins anew with it.
  int64_t time(bool reverse, int64_t b, int64_t i) const {
    return reverse ? lengths[b] - 1 - i : i;
  }
  bool begins(bool reverse, int64_t b, int64_t i) const {
    return i > 0 && reset[time(reverse, b, reverse ? i - 1 : i) * batch + b];
  }
};

struct Worst {
  double error = 0;
  std::string where;

  void compare(const char* name, int d, int64_t t, int64_t b, int64_t j, double got, double want) {
    const double found = std::abs(got - want) / std::max(1.0, std::abs(want));
    if (found <= error) return;
    error = std::isnan(found) ? std::numeric_limits<double>::infinity() : found;
    char text[200];
    std::snprintf(text, sizeof text, "%s[%d], t %d, b %d, j %d: %.7g for %.7g", name, d,
                  static_cast<int>(t), static_cast<int>(b), static_cast<int>(j), got, want);
    where = text;
  }
};

// One rounding of a result to its type, and what the sum of a product may err: tensor cores add up
// in an order and with roundings of their own.
double allowed(const Variant& v) {
  const double sum = v.choice.rows < 8 ? 1e-5 : 1e-4;
  if (v.dtype == Dtype::kFloat32) return sum;
  return sum + std::ldexp(1.0, v.dtype == Dtype::kFloat16 ? -11 : -8);
}

// Two directions of two groups, the second not full, with units missing. Each step is compared with
// what follows from the step before as the kernel has stored it, so that errors do not add up.
bool check(const Variant& v, const std::string& kind) {
  const int64_t H = v.choice.units - 3, B = v.choice.rows + 1, D = 2, features = D * H;
  const bool relu = kind == "packed" || kind == "lengths";  // tanh with the others
  const Layout layout(kind, B);
  const double deviation = 1 / std::sqrt(static_cast<double>(H));
  const Values w(v.dtype, D * H * H, deviation), b_ih(v.dtype, D * H, 0.3),
      b_hh(v.dtype, D * H, 0.3), hx(v.dtype, D * B * H, 1),
      grad_output(v.dtype, layout.count * features, 1), grad_hn(v.dtype, D * B * H, 1);
  Values output(v.dtype, layout.count * features, 1);  // first igates, as in the operators
  const std::vector<double> igates = output.x;
  Values again(v.dtype, layout.count * features), hn(v.dtype, D * B * H),
      grad_pre(v.dtype, layout.count * features), grad_hx(v.dtype, D * B * H);

  const Buffer lengths(layout.lengths), start(layout.start), order(layout.order),
      reset(layout.reset);
  Rows rows{layout.seq_len, B, nullptr, nullptr, nullptr, nullptr, B, 1};
  if (kind != "whole") rows.lengths = lengths.as<int64_t>();
  if (layout.packed) rows.start = start.as<int64_t>();
  if (layout.has_reset) {
    rows.order = order.as<int64_t>();
    rows.reset = reset.as<bool>();
  }
  auto forward = recurrence_of<ForwardDirection>(v, H, rows, D, relu);
  auto backward = recurrence_of<BackwardDirection>(v, H, rows, D, relu);
  for (int d = 0; d < D; ++d) {
    const auto sequence = [&](const Values& x) {
      return Sequence{x.at(d * H), layout.packed ? 0 : B * features, features};
    };
    const auto state = [&](const Values& x) { return x.at(d * B * H); };
    const void* w_hh = w.at(d * H * H);
    forward.direction[d] = {d == 1,          w_hh,     b_ih.at(d * H),   b_hh.at(d * H),
                            state(hx),       H,        sequence(output), sequence(output),
                            sequence(again), state(hn)};
    backward.direction[d] = {d == 1,           w_hh,
                             sequence(output), sequence(grad_output),
                             state(grad_hn),   sequence(grad_pre),
                             state(grad_hx)};
  }
  run(forward, v.choice);
  run(backward, v.choice);
  synchronize();
  for (Values* x : {&output, &again, &hn, &grad_pre, &grad_hx}) x->download();

  const auto factor = [&](double x) { return v.tf32 ? tf32_of(x) : x; };
  std::vector<double> factors(w.x.size());
  std::transform(w.x.begin(), w.x.end(), factors.begin(), factor);
  Worst worst;
  for (int d = 0; d < D; ++d) {
    const double* const w_hh = &factors[d * H * H];
    for (int64_t b = 0; b < B; ++b) {
      const int64_t length = layout.lengths[b], states = (d * B + b) * H;
      const auto place = [&](int64_t i) {
        return layout.row(layout.time(d, b, i), b) * features + d * H;
      };
      // sum[j] = sum over k of w[j, k] * x[k], or of w[k, j] * x[k]
      const auto product = [&](const double* x, bool transposed) {
        std::vector<double> sum(H);
        for (int64_t j = 0; j < H; ++j)
          for (int64_t k = 0; k < H; ++k)
            sum[transposed ? k : j] += w_hh[j * H + k] * factor(x[transposed ? j : k]);
        return sum;
      };
      std::vector<double> to_hx(H);
      for (int64_t i = 0; i < length; ++i) {
        const int64_t at = place(i), t = layout.time(d, b, i);
        const bool begins = layout.begins(d, b, i), last = i == length - 1;
        const bool ends = !last && layout.begins(d, b, i + 1);
        std::vector<double> sum(H);
        if (!begins) sum = product(i == 0 ? &hx.x[states] : &output.x[place(i - 1)], false);
        std::vector<double> carry(H);
        if (last) {
          carry.assign(&grad_hn.x[states], &grad_hn.x[states] + H);
        } else if (!ends) {
          carry = product(&grad_pre.x[place(i + 1)], true);
        }
        for (int64_t j = 0; j < H; ++j) {
          const double z = igates[at + j] + b_ih[d * H + j] + b_hh[d * H + j] + sum[j];
          const double h = output[at + j];
          const double slope = relu ? !(h <= 0) : 1 - h * h;
          worst.compare("output", d, t, b, j, h, relu ? std::max(z, 0.0) : std::tanh(z));
          worst.compare("copy", d, t, b, j, again[at + j], h);
          worst.compare("grad_pre", d, t, b, j, grad_pre[at + j],
                        (carry[j] + grad_output[at + j]) * slope);
        }
        if (i == 0) to_hx = product(&grad_pre.x[at], true);
      }
      for (int64_t j = 0; j < H; ++j) {
        const double h = length ? output[place(length - 1) + j] : hx[states + j];
        worst.compare("hn", d, length, b, j, hn[states + j], h);
        worst.compare("grad_hx", d, 0, b, j, grad_hx[states + j],
                      length ? to_hx[j] : grad_hn[states + j]);
        for (int64_t t = length; t < layout.seq_len && !layout.packed; ++t) {
          const int64_t at = layout.row(t, b) * features + d * H + j;
          worst.compare("output", d, t, b, j, output[at], 0);
          worst.compare("copy", d, t, b, j, again[at], 0);
          worst.compare("grad_pre", d, t, b, j, grad_pre[at], 0);
        }
      }
    }
  }
  const bool right = worst.error <= allowed(v);
  std::printf(
      "{%s, \"rows\": \"%s\", \"right\": %s, \"error\": %.2g, \"allowed\": %.2g, "
      "\"worst\": \"%s\"}\n",
      json_of(v).c_str(), kind.c_str(), right ? "true" : "false", std::min(worst.error, 1e300),
      allowed(v), worst.where.c_str());
  return right;
}

// Nanoseconds of a step of `groups` groups: the slope between two lengths, so that the launch and
// the loading of the weights fall out. The best of several runs.
template <typename R>
double step_time(R r, const Choice& c, int64_t seq_len) {
  const auto best = [&](int64_t steps) {
    r.rows.seq_len = steps;
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 5; ++i) {
      synchronize();
      const auto begin = std::chrono::steady_clock::now();
      run(r, c);
      synchronize();
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
  const int at_once = groups_that_run(c, current_device());
  if (at_once < 1) return;
  const Values w(v.dtype, H * H, 1 / std::sqrt(static_cast<double>(H)));
  // Numbers below one: igates, output and grad_output. They repeat: drawing takes longer.
  const Values some(v.dtype, int64_t{1} << 16, 0.2);
  const Buffer x(kTimedBytes), y(kTimedBytes), hn(kTimedBytes / kFewestSteps);
  for (int64_t i = 0; i < kTimedBytes; i += bytes << 16)
    copy(x.as<char>() + i, some.at(0), bytes << 16);
  for (const double share : {0.0, 0.5, 1.0, 2.0}) {
    const int64_t groups = std::max<int64_t>(1, static_cast<int64_t>(share * at_once));
    const int64_t B = groups * c.rows, T = std::min(kTimedSteps, kTimedBytes / (B * H * bytes));
    if (T < kFewestSteps) continue;
    const Rows rows{T, B, nullptr, nullptr, nullptr, nullptr, 0, 0};
    const Sequence from{x.get(), B * H, H}, to{y.get(), B * H, H};
    auto forward = recurrence_of<ForwardDirection>(v, H, rows, 1, false);
    auto backward = recurrence_of<BackwardDirection>(v, H, rows, 1, false);
    forward.direction[0] = {false, w.at(0), nullptr, nullptr, nullptr, 0, from, to, {}, hn.get()};
    backward.direction[0] = {false, w.at(0), from, from, nullptr, to, nullptr};
    const double ns[] = {step_time(forward, c, T), step_time(backward, c, T)};
    for (const int pass : {0, 1})
      std::printf(
          "{%s, \"pass\": \"%s\", \"groups\": %d, \"at_once\": %d, \"steps\": %d, "
          "\"ns\": %.1f}\n",
          json_of(v).c_str(), pass ? "backward" : "forward", static_cast<int>(groups), at_once,
          static_cast<int>(T), ns[pass]);
    std::fflush(stdout);
  }
}

// What the device can run.
std::vector<Variant> variants() {
  const Device device = current_device();
  std::vector<std::string> names;
  for (const Choice& c : configurations())
    if (std::find(names.begin(), names.end(), name_of(c)) == names.end())
      names.push_back(name_of(c));
  std::vector<Variant> found;
  for (const std::string& name : names) {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
      try {
        const Choice choice = choose({dtype, false, true, 5, 1, 1, 1}, device, name);
        found.push_back({choice, dtype, dtype == Dtype::kFloat32 && choice.rows >= 8});
      } catch (const std::invalid_argument&) {  // not in this type, or not on this device
      }
    }
  }
  return found;
}

}  // namespace

int main(int count, char** words) {
  const auto word = [&](int i) { return std::string(i < count ? words[i] : ""); };
  const auto asked = [&](int i, const std::string& x) { return i >= count || word(i) == x; };
  bool found = false, right = true;
  std::string running;
  try {
    for (const Variant& v : variants()) {
      if (!asked(2, name_of(v.choice)) || !asked(3, dtype_name(v.dtype))) continue;
      running = json_of(v) + ", ";
      if (word(1) == "list") {
        std::printf("%s %s\n", name_of(v.choice).c_str(), dtype_name(v.dtype).c_str());
        found = true;
      } else if (word(1) == "time") {
        time(v);
        found = true;
      } else if (word(1) == "check") {
        for (const char* kind : {"whole", "packed", "lengths", "marks"}) {
          if (!asked(4, kind)) continue;
          right = check(v, kind) && right;
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
        "       a NAME and DTYPE of the list; ROWS whole, packed, lengths or marks\n",
        stderr);
  return found && right ? 0 : 1;
}
