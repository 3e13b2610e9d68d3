#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <thread>

#include "cuda/check.cuh"
#include "cuda/check.h"
#include "cuda/launchers.h"
#include "cuda/step.h"

namespace fastrnn::cuda {
namespace {

int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

struct Sizes {
  int64_t seq_len, batch, hidden_size, directions;

  // Else two groups of rows, the second not full, with units missing: for whole rows as many as
  // leave 16 bytes whole. The longest goes round the ring of whole_rows.cuh.
  Sizes(const Choice& c, const Trial& trial) {
    const int64_t rows = c.units ? c.rows : 4, units = c.units ? c.units : 64;
    seq_len = trial.bare ? 2 : trial.full ? 11 : 5;
    batch = trial.bare ? 1 : trial.full ? 2 * rows + 1 : rows + 1;
    const int64_t whole = trial.lengths == Lengths::kWhole ? units - 8 : units - 3;
    hidden_size = trial.bare ? units / 4 + 1 : trial.full ? units : whole;
    directions = trial.bare ? 1 : 2;
  }
  int64_t features() const { return directions * hidden_size; }
  int64_t elements() const { return seq_len * batch * features(); }
  int64_t states() const { return directions * batch * hidden_size; }
};

// Takes parts of the workspace, or counts them where that is null.
struct Parts {
  char* base;
  int64_t used = 0;

  template <typename T = void>
  T* take(int64_t bytes) {
    char* const part = base ? base + used : nullptr;
    used += (bytes + 255) / 256 * 256;
    return reinterpret_cast<T*>(part);
  }
};

// The tensors of a check.
struct Tensors {
  int64_t used;
  void *w_hh, *b_ih, *b_hh, *hx, *igates, *grad_output, *grad_hn;     // filled
  void *output, *copy, *hn, *grad_pre, *grad_hx, *previous, *masked;  // NaN at first
  void* product;
  int64_t *given_lengths, *lengths, *start, *order;
  bool* reset;
  Findings* found;
  GaveUp* gave_up;

  Tensors(const Sizes& s, Dtype dtype, char* base) {
    Parts parts{base};
    const auto take = [&](int64_t count) { return parts.take(count * bytes_of(dtype)); };
    w_hh = take(s.directions * s.hidden_size * s.hidden_size);
    b_ih = take(s.features());
    b_hh = take(s.features());
    hx = take(s.states());
    igates = take(s.elements());
    grad_output = take(s.elements());
    grad_hn = take(s.states());
    output = take(s.elements());
    copy = take(s.elements());
    hn = take(s.states());
    grad_pre = take(s.elements());
    grad_hx = parts.take(s.states() * 8);  // in any type
    previous = take(s.elements());
    masked = take(s.elements());
    product = parts.take(s.states() * 8);
    given_lengths = parts.take<int64_t>(s.batch * 8);
    lengths = parts.take<int64_t>(s.batch * 8);
    start = parts.take<int64_t>(s.seq_len * 8);
    order = parts.take<int64_t>(s.batch * 8);
    reset = parts.take<bool>(s.seq_len * s.batch);
    found = parts.take<Findings>(sizeof(Findings));
    gave_up = parts.take<GaveUp>(sizeof(GaveUp));
    used = parts.used;
  }
};

// One direction's part of a tensor; of none, none.
void* part(void* data, int64_t d, int64_t count, Dtype dtype) {
  return data ? static_cast<char*>(data) + d * count * bytes_of(dtype) : nullptr;
}

// Rows of many lengths, the first of which has every step.
struct Layout {
  std::vector<int64_t> lengths, start, order;
  std::vector<char> reset;

  Layout(Lengths kind, const Sizes& s) : order(s.batch) {
    const bool packed = kind == Lengths::kPacked;
    for (int64_t b = 0; b < s.batch; ++b) {
      const int64_t some =
          packed ? std::max<int64_t>(s.seq_len - (b + 1) / 2, 1) : b * 4 % (s.seq_len + 1);
      lengths.push_back(kind == Lengths::kWhole || b == 0 ? s.seq_len : some);
    }
    start.push_back(0);
    for (int64_t t = 0; t < s.seq_len; ++t) {
      const auto there = std::count_if(lengths.begin(), lengths.end(),
                                       [&](int64_t length) { return !packed || length > t; });
      start.push_back(start.back() + there);
      for (int64_t b = 0; b < s.batch; ++b) reset.push_back((t + 2 * b) % 3 == 0);
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  }
  int64_t active(int64_t t) const { return start[t + 1] - start[t]; }
};

// Calls one after the other until one fails.
struct Until {
  cudaError_t error = cudaSuccess;

  template <typename F>
  void call(const F& f) {
    if (error == cudaSuccess) error = f();
  }
};

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), int64_t threads, int directions, cudaStream_t stream,
                const Arguments&... arguments) {
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads), directions);
  return launch(kernel, {grid, kThreads, 0, stream}, static_cast<Parameters>(arguments)...);
}

// The step kernels, with plain products between them, as stack.cpp has them with cuBLAS's.
cudaError_t forward_by_steps(const ForwardRecurrence& r, const Tensors& t, cudaStream_t stream) {
  const int64_t B = r.rows.batch, H = r.hidden_size, T = r.rows.seq_len;
  const bool uniform = !r.rows.lengths && !r.rows.reset;
  Until until;
  ForwardStep step{r, 0, B, {}, {}};
  for (int d = 0; d < r.num_directions && !uniform; ++d) {
    until.call([&] {
      return cudaMemcpyAsync(r.direction[d].hn, r.direction[d].hx, B * H * bytes_of(r.dtype),
                             cudaMemcpyDeviceToDevice, stream);
    });
  }
  for (int64_t& i = step.step; i < T; ++i) {
    for (int d = 0; d < r.num_directions; ++d) {
      const ForwardDirection& own = r.direction[d];
      const void* from = uniform ? own.hx : own.hn;
      int64_t stride = uniform ? own.hx_row_stride : H;
      if (uniform && i > 0) {
        const int64_t before = own.reverse ? T - i : i - 1;
        from = part(own.output.data, before, own.output.step_stride, r.dtype);
        stride = own.output.row_stride;
      }
      step.state[d] = uniform && i < T - 1 ? nullptr : own.hn;
      step.product[d] = from ? part(t.product, d, B * H, Dtype::kFloat64) : nullptr;
      if (!from) continue;
      until.call([&] {
        return run(product_kernel, B * H, 1, stream, r.dtype, from, stride, own.w_hh, false, B, H,
                   const_cast<void*>(step.product[d]));
      });
    }
    until.call([&] { return launch_forward_step(step, stream); });
  }
  return until.error;
}

// grad_hx comes in the accumulation type.
cudaError_t backward_by_steps(const BackwardRecurrence& r, const Tensors& t, const Layout& layout,
                              cudaStream_t stream) {
  const int64_t B = r.rows.batch, H = r.hidden_size, T = r.rows.seq_len;
  Until until;
  BackwardStep step{r, 0, B, {}, {}};
  for (int d = 0; d < r.num_directions; ++d) {
    step.product[d] = part(t.product, d, B * H, Dtype::kFloat64);
    step.grad_hx[d] = r.direction[d].grad_hx;
  }
  for (; step.step <= T; ++step.step) {
    for (int d = 0; d < r.num_directions; ++d) {
      const BackwardDirection& own = r.direction[d];
      const int64_t after = own.reverse ? step.step - 1 : T - step.step;
      if (after < 0 || after >= T) continue;
      const void* from =
          part(own.grad_pre.data, layout.start[after], own.grad_pre.row_stride, r.dtype);
      until.call([&] {
        return run(product_kernel, layout.active(after) * H, 1, stream, r.dtype, from,
                   own.grad_pre.row_stride, own.w_hh, true, layout.active(after), H,
                   const_cast<void*>(step.product[d]));
      });
    }
    until.call([&] { return launch_backward_step(step, stream); });
  }
  return until.error;
}

// Whether the stream has come to its end in time; *error is the device's.
bool ends_in_time(cudaStream_t stream, cudaError_t* error) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(kCheckSeconds);
  while ((*error = cudaStreamQuery(stream)) == cudaErrorNotReady) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}

// One rounding of a result to its type, and what the sum of a product may err: tensor cores add up
// in an order and with roundings of their own.
double allowed(const Variant& v) {
  const bool tensor = kConfigurations[v.choice.configuration].on_tensor_cores();
  switch (v.dtype) {
    case Dtype::kFloat64:
      return 1e-13;
    case Dtype::kFloat32:
      return tensor ? 1e-4 : 1e-5;
    case Dtype::kFloat16:
      return 1e-4 + 0x1p-11;
    case Dtype::kBFloat16:
      return 1e-4 + 0x1p-8;
  }
  return 0;
}

}  // namespace

const char* name_of(Dtype dtype) {
  const char* const names[kDtypes] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(dtype)];
}

bool Variant::tf32() const {
  return kConfigurations[choice.configuration].arithmetic == Arithmetic::kTF32;
}

std::vector<Variant> variants(const Device& device) {
  std::vector<Variant> found;
  for (const Configuration& c : kConfigurations) {
    if (c.kernel == Kernel::kTorch) continue;
    for (const Dtype dtype :
         {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat64}) {
      const Problem small{dtype, false, true, 1, 1, 1, 1};
      if (const auto choice = choice_of(c, small, device)) found.push_back({*choice, dtype});
    }
  }
  return found;
}

std::string Verdict::fault() const {
  char text[200];
  if (gave_up.yes) {
    std::snprintf(text, sizeof text,
                  "block %u, thread %u waited in vain for exchange %u with another block",
                  gave_up.block, gave_up.thread, gave_up.exchange);
  } else if (timed_out) {
    std::snprintf(text, sizeof text, "it did not end within %d s", kCheckSeconds);
  } else if (error != cudaSuccess) {
    return cudaGetErrorString(error);
  } else if (compared != to_compare) {
    std::snprintf(text, sizeof text, "%lld numbers were compared, not %lld",
                  static_cast<long long>(compared), static_cast<long long>(to_compare));
  } else if (!is_right()) {
    std::snprintf(text, sizeof text, "%s is off by %.2g, allowed are %.2g", where.c_str(), worst,
                  allowed);
  } else {
    return "";
  }
  return text;
}

int64_t check_bytes(const Variant& v) {
  int64_t most = 0;
  for (const Trial& trial : kTrials)
    most = std::max(most, Tensors(Sizes(v.choice, trial), v.dtype, nullptr).used);
  return most;
}

Verdict check_variant(const Variant& v, const Trial& trial, void* workspace, cudaStream_t stream) {
  const Sizes s(v.choice, trial);
  const Tensors t(s, v.dtype, static_cast<char*>(workspace));
  const int64_t T = s.seq_len, B = s.batch, H = s.hidden_size, features = s.features();
  const int D = static_cast<int>(s.directions);
  const Lengths lengths = trial.lengths;
  const Layout layout(lengths, s);
  const bool packed = lengths == Lengths::kPacked, by_steps = v.choice.kernel == Kernel::kStep;
  const auto unless_bare = [&](void* x) { return trial.bare ? nullptr : x; };
  Until until;

  // Inputs, and NaN where results are to come.
  const auto fill = [&](void* data, int64_t count, double scale) {
    static constexpr double kUnit = 1.7320508;  // of a uniform number of deviation 1
    const auto seed = static_cast<uint32_t>(static_cast<char*>(data) - static_cast<char*>(t.w_hh));
    until.call([&] {
      return run(fill_kernel, count, 1, stream, v.dtype, data, count, kUnit * scale, seed);
    });
  };
  const auto copy = [&](void* to, const void* from, int64_t bytes) {
    until.call([&] { return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream); });
  };
  until.call([&] { return cudaMemsetAsync(workspace, 0xff, t.used, stream); });
  until.call([&] { return cudaMemsetAsync(t.found, 0, sizeof(Findings), stream); });
  until.call([&] { return cudaMemsetAsync(t.gave_up, 0, sizeof(GaveUp), stream); });
  fill(t.w_hh, D * H * H, 1 / std::sqrt(static_cast<double>(H)));
  for (void* bias : {t.b_ih, t.b_hh}) fill(bias, features, 0.3);
  for (void* state : {t.hx, t.grad_hn}) fill(state, s.states(), 1);
  for (void* sequence : {t.igates, t.grad_output}) fill(sequence, s.elements(), 1);
  // As the operators have it: h over the input's part of its pre-activation and, between layers,
  // grad_pre over the gradient of h.
  const int64_t bytes = s.elements() * bytes_of(v.dtype);
  copy(t.output, t.igates, bytes);
  if (trial.full) copy(t.grad_pre, t.grad_output, bytes);

  Rows rows{T, B, nullptr, nullptr, nullptr, nullptr, B, 1};
  if (packed) {
    until.call([&] {
      return launch_packed_rows(layout.lengths.data(), B, T, t.lengths, t.start, stream);
    });
    rows.start = t.start;
  } else if (lengths != Lengths::kWhole) {
    copy(t.given_lengths, layout.lengths.data(), B * 8);
    until.call([&] { return launch_check_lengths(t.given_lengths, B, T, t.lengths, stream); });
  }
  if (lengths != Lengths::kWhole) rows.lengths = t.lengths;
  if (lengths == Lengths::kMarks) {
    copy(t.order, layout.order.data(), B * 8);
    copy(t.reset, layout.reset.data(), T * B);
    rows.order = t.order;
    rows.reset = t.reset;
  }

  ForwardRecurrence forward{v.dtype, trial.nonlinearity, v.tf32(), H, rows, D, {}, t.gave_up};
  BackwardRecurrence backward{v.dtype, trial.nonlinearity, v.tf32(), H, rows, D, {}, t.gave_up};
  Others others{};
  const Dtype wide = v.dtype == Dtype::kFloat64 ? v.dtype : Dtype::kFloat32;
  for (int d = 0; d < D; ++d) {
    const auto sequence = [&](void* x) {
      return Sequence{part(x, d, H, v.dtype), packed ? 0 : B * features, features};
    };
    const auto state = [&](void* x) { return part(unless_bare(x), d, B * H, v.dtype); };
    const auto bias = [&](void* x) { return part(unless_bare(x), d, H, v.dtype); };
    const void* w_hh = part(t.w_hh, d, H * H, v.dtype);
    void* const hn = part(t.hn, d, B * H, v.dtype);
    // The user's own, of rows one behind the other.
    const Sequence grad_output = trial.bare ? Sequence{t.grad_output, features, T * features}
                                            : sequence(trial.full ? t.grad_pre : t.grad_output);
    const Sequence output = sequence(t.output);
    forward.direction[d] = {d == 1,
                            w_hh,
                            bias(t.b_ih),
                            bias(t.b_hh),
                            state(t.hx),
                            H,
                            output,
                            output,
                            sequence(unless_bare(t.copy)),
                            hn};
    backward.direction[d] = {d == 1,
                             w_hh,
                             output,
                             grad_output,
                             state(t.grad_hn),
                             sequence(t.grad_pre),
                             part(unless_bare(t.grad_hx), d, B * H, by_steps ? wide : v.dtype)};
    if (!by_steps) continue;
    others.previous[d] = sequence(t.previous);
    if (!packed) others.masked[d] = sequence(t.masked);
  }
  until.call([&] {
    return by_steps ? forward_by_steps(forward, t, stream)
                    : forward_launcher(v.choice.kernel)(forward, v.choice, stream);
  });
  until.call([&] {
    return by_steps ? backward_by_steps(backward, t, layout, stream)
                    : backward_launcher(v.choice.kernel)(backward, v.choice, stream);
  });
  for (int d = 0; d < D; ++d) {
    ForwardDirection& own = forward.direction[d];
    own.igates.data = part(t.igates, d, H, v.dtype);
    if (trial.full) backward.direction[d].grad_output.data = part(t.grad_output, d, H, v.dtype);
    if (!by_steps) continue;
    until.call([&] {
      return launch_previous_states({v.dtype, rows, H, own.reverse, own.output, own.hx,
                                     own.hx_row_stride, others.previous[d]},
                                    stream);
    });
    if (packed) continue;  // whose rows have no steps beyond their lengths
    until.call([&] {
      return launch_masked_copy({v.dtype, rows, H, own.igates, others.masked[d]}, stream);
    });
  }

  const int64_t elements = (T + 1) * B * H;
  until.call(
      [&] { return run(compare_forward_kernel, elements, D, stream, forward, others, t.found); });
  until.call([&] {
    return run(compare_backward_kernel, elements, D, stream, backward, by_steps ? wide : v.dtype,
               t.found);
  });
  Verdict verdict;
  verdict.allowed = allowed(v);
  const int64_t of_steps = layout.start.back() * features;
  verdict.to_compare = of_steps * (2 + (trial.bare ? 0 : 1) + (by_steps ? (packed ? 1 : 2) : 0)) +
                       s.states() * (trial.bare ? 1 : 2);
  cudaError_t ended = cudaSuccess;
  verdict.timed_out = !ends_in_time(stream, &ended);
  verdict.error = until.error != cudaSuccess ? until.error : ended;
  if (verdict.timed_out || verdict.error != cudaSuccess) {
    cudaGetLastError();  // so that nobody else finds it
    return verdict;
  }
  Findings found{};
  copy(&found, t.found, sizeof found);
  copy(&verdict.gave_up, t.gave_up, sizeof(GaveUp));
  until.call([&] { return cudaStreamSynchronize(stream); });
  verdict.error = until.error;
  verdict.worst = std::bit_cast<float>(static_cast<uint32_t>(found.worst >> 32));
  verdict.where = Places{T, B, H}.name(static_cast<uint32_t>(found.worst));
  verdict.compared = found.compared;
  return verdict;
}

}  // namespace fastrnn::cuda
