#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <thread>

#include "cuda/check.h"
#include "cuda/launchers.h"
#include "cuda/math.cuh"
#include "cuda/step.h"

namespace fastrnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSteps = 5, kDirections = 2;

// --- On the device: numbers, plain products, and the comparison. Simple and slow on purpose.

FASTRNN_DEVICE int64_t thread_number() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

FASTRNN_DEVICE double load(Dtype dtype, const void* data, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(data)[i];
    case Dtype::kFloat64:
      return static_cast<const double*>(data)[i];
    case Dtype::kFloat16:
      return widen(static_cast<const Half*>(data)[i]);
    case Dtype::kBFloat16:
      return widen(static_cast<const BFloat16*>(data)[i]);
  }
  return 0;
}
FASTRNN_DEVICE void store(Dtype dtype, void* data, int64_t i, double x) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(data)[i] = static_cast<float>(x);
      return;
    case Dtype::kFloat64:
      static_cast<double*>(data)[i] = x;
      return;
    case Dtype::kFloat16:
      return narrow(static_cast<Half*>(data) + i, static_cast<float>(x));
    case Dtype::kBFloat16:
      return narrow(static_cast<BFloat16*>(data) + i, static_cast<float>(x));
  }
}

// data[i], uniform in -scale to scale, from i and the seed alone.
FASTRNN_KERNEL(kThreads, 1)
void fill_kernel(Dtype dtype, void* data, int64_t count, double scale, uint32_t seed) {
  const int64_t i = thread_number();
  if (i >= count) return;
  uint64_t x = (uint64_t{seed} << 40) + static_cast<uint64_t>(i) + 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;  // splitmix64 (Steele et al. 2014)
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  const double unit = static_cast<double>(x >> 11) * 0x1p-53;
  store(dtype, data, i, scale * (2 * unit - 1));
}

// The sum over k of w[j, k] * x[k], or of w[k, j] * x[k].
FASTRNN_DEVICE double product(Dtype dtype, bool tf32, const void* w, bool transposed, int64_t H,
                              int64_t j, const void* x, int64_t first) {
  const auto factor = [&](const void* data, int64_t i) {
    const double value = load(dtype, data, i);
    return tf32 ? double{float_of(tf32_of(static_cast<float>(value)))} : value;
  };
  double sum = 0;
  for (int64_t k = 0; k < H; ++k)
    sum += factor(w, transposed ? k * H + j : j * H + k) * factor(x, first + k);
  return sum;
}

// to[b, j], in the accumulation type, for rows of x that lie row_stride apart: what the operators
// ask cuBLAS for.
FASTRNN_KERNEL(kThreads, 1)
void product_kernel(Dtype dtype, const void* x, int64_t row_stride, const void* w, bool transposed,
                    int64_t rows, int64_t H, void* to) {
  const int64_t i = thread_number();
  if (i >= rows * H) return;
  const double sum = product(dtype, false, w, transposed, H, i % H, x, i / H * row_stride);
  store(dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32, to, i, sum);
}

// What is compared, in the order of kNames below.
enum Result : int { kOutput, kCopy, kHn, kGradPre, kGradHx };
const char* const kNames[] = {"output", "copy", "hn", "grad_pre", "grad_hx"};

// The place of an element among all that a check compares; t = T for those without a step.
struct Place32 {
  int64_t steps, batch, hidden_size;

  FASTRNN_DEVICE uint32_t of(Result result, int d, int64_t t, int64_t b, int64_t j) const {
    const int64_t step = (result * kDirections + d) * (steps + 1) + t;
    return static_cast<uint32_t>((step * batch + b) * hidden_size + j);
  }
  std::string name(uint32_t place) const {
    const int64_t step = place / hidden_size / batch, which = step / (steps + 1);
    char text[100];
    std::snprintf(text, sizeof text, "%s[%d], t %d, b %d, j %d", kNames[which / kDirections],
                  static_cast<int>(which % kDirections), static_cast<int>(step % (steps + 1)),
                  static_cast<int>(place / hidden_size % batch),
                  static_cast<int>(place % hidden_size));
    return text;
  }
};

// *worst: the bits of the largest error, and in the lower half its place. NaN counts as infinite.
FASTRNN_DEVICE void compare(uint64_t* worst, uint32_t place, double got, double want) {
  const double size = fabs(want);
  float error = static_cast<float>(fabs(got - want) / (size > 1 ? size : 1.0));
  if (!(error >= 0)) error = INFINITY;
  atomic_max(worst, uint64_t{bits_of(error)} << 32 | place);
}

// A thread has an element of a step or, where t = T, of the final state.
struct Element {
  int64_t t, b, j, length;
  bool inside;

  template <typename Direction>
  FASTRNN_DEVICE Element(const Recurrence<Direction>& r, int64_t i) {
    const int64_t B = r.rows.batch, H = r.hidden_size;
    t = i / (B * H);
    b = i / H % B;
    j = i % H;
    inside = t <= r.rows.seq_len;
    length = inside ? row_length(r.rows, b) : 0;
  }
};

// igates are those before output was written over them.
FASTRNN_KERNEL(kThreads, 1)
void compare_forward_kernel(const __grid_constant__ ForwardRecurrence r, uint64_t* worst) {
  const int n = blockIdx.y;
  const ForwardDirection& d = r.direction[n];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len;
  const auto [t, b, j, length, inside] = Element(r, thread_number());
  const Place32 place_of{T, rows.batch, H};
  const auto output = [&](int64_t s) {
    return load(r.dtype, d.output.data, place(rows, d.output, s, b) + j);
  };
  if (!inside) return;
  const double hx = d.hx ? load(r.dtype, d.hx, b * d.hx_row_stride + j) : 0;
  if (t == T) {
    const double want = length > 0 ? output(d.reverse ? 0 : length - 1) : hx;
    return compare(worst, place_of.of(kHn, n, t, b, j), load(r.dtype, d.hn, b * H + j), want);
  }
  if (t >= length && rows.start) return;
  const double got = output(t), copy = load(r.dtype, d.copy.data, place(rows, d.copy, t, b) + j);
  double want = 0;
  if (t < length) {
    const int64_t before = d.reverse ? t + 1 : t - 1;
    const bool first = before < 0 || before >= length;
    want = load(r.dtype, d.igates.data, place(rows, d.igates, t, b) + j);
    want += load(r.dtype, d.b_ih, j) + load(r.dtype, d.b_hh, j);
    if (first) {
      want += product(r.dtype, r.tf32, d.w_hh, false, H, j, d.hx, b * d.hx_row_stride);
    } else if (!is_cut(rows, t, before, b)) {
      const int64_t from = place(rows, d.output, before, b);
      want += product(r.dtype, r.tf32, d.w_hh, false, H, j, d.output.data, from);
    }
    want = r.nonlinearity == Nonlinearity::kRelu ? (want > 0 ? want : 0) : tanh(want);
  }
  compare(worst, place_of.of(kOutput, n, t, b, j), got, want);
  compare(worst, place_of.of(kCopy, n, t, b, j), copy, got);
}

FASTRNN_KERNEL(kThreads, 1)
void compare_backward_kernel(const __grid_constant__ BackwardRecurrence r, Dtype grad_hx,
                             uint64_t* worst) {
  const int n = blockIdx.y;
  const BackwardDirection& d = r.direction[n];
  const Rows& rows = r.rows;
  const int64_t H = r.hidden_size, T = rows.seq_len;
  const auto [t, b, j, length, inside] = Element(r, thread_number());
  const Place32 place_of{T, rows.batch, H};
  if (!inside) return;
  // What comes to h from the step after it.
  const auto carry = [&](int64_t after) {
    return product(r.dtype, r.tf32, d.w_hh, true, H, j, d.grad_pre.data,
                   place(rows, d.grad_pre, after, b));
  };
  const double grad_hn = load(r.dtype, d.grad_hn, b * H + j);
  if (t == T) {
    const double want = length > 0 ? carry(d.reverse ? length - 1 : 0) : grad_hn;
    return compare(worst, place_of.of(kGradHx, n, t, b, j), load(grad_hx, d.grad_hx, b * H + j),
                   want);
  }
  if (t >= length && rows.start) return;
  double want = 0;
  if (t < length) {
    const int64_t after = d.reverse ? t - 1 : t + 1;
    const bool last = after < 0 || after >= length;
    if (last) {
      want = grad_hn;
    } else if (!is_cut(rows, t, after, b)) {
      want = carry(after);
    }
    want += load(r.dtype, d.grad_output.data, place(rows, d.grad_output, t, b) + j);
    const double h = load(r.dtype, d.output.data, place(rows, d.output, t, b) + j);
    want *= r.nonlinearity == Nonlinearity::kRelu ? (h > 0 ? 1.0 : 0.0) : 1 - h * h;
  }
  const double got = load(r.dtype, d.grad_pre.data, place(rows, d.grad_pre, t, b) + j);
  compare(worst, place_of.of(kGradPre, n, t, b, j), got, want);
}

// --- On the host

int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

struct Sizes {
  int64_t batch, hidden_size;

  // Two groups of rows, the second not full, with units missing.
  explicit Sizes(const Choice& c)
      : batch(c.units ? c.rows + 1 : 5), hidden_size(c.units ? c.units - 3 : 67) {}
  int64_t features() const { return kDirections * hidden_size; }
  int64_t elements() const { return kSteps * batch * features(); }
  int64_t states() const { return kDirections * batch * hidden_size; }
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
  Sizes s;
  int64_t used;
  void *w_hh, *b_ih, *b_hh, *hx, *igates, *grad_output, *grad_hn;  // filled
  void *output, *copy, *hn, *grad_pre, *grad_hx, *product;         // NaN at first
  int64_t *given_lengths, *lengths, *start, *order;
  bool* reset;
  uint64_t* worst;
  GaveUp* gave_up;

  Tensors(const Variant& v, char* base) : s(v.choice) {
    Parts parts{base};
    const int64_t size = bytes_of(v.dtype);
    const auto take = [&](int64_t count) { return parts.take(count * size); };
    w_hh = take(kDirections * s.hidden_size * s.hidden_size);
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
    product = parts.take(s.states() * 8);
    given_lengths = parts.take<int64_t>(s.batch * 8);
    lengths = parts.take<int64_t>(s.batch * 8);
    start = parts.take<int64_t>(kSteps * 8);
    order = parts.take<int64_t>(s.batch * 8);
    reset = parts.take<bool>(kSteps * s.batch);
    worst = parts.take<uint64_t>(8);
    gave_up = parts.take<GaveUp>(sizeof(GaveUp));
    used = parts.used;
  }
};

// One direction's part of a tensor.
void* part(void* data, int64_t d, int64_t count, Dtype dtype) {
  return static_cast<char*>(data) + d * count * bytes_of(dtype);
}

// Rows of many lengths, the first of which has every step.
struct Layout {
  std::vector<int64_t> lengths, start, order;
  std::vector<char> reset;

  Layout(Lengths kind, int64_t batch) : order(batch) {
    const bool packed = kind == Lengths::kPacked;
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t some =
          packed ? std::max<int64_t>(kSteps - (b + 1) / 2, 1) : b * 4 % (kSteps + 1);
      lengths.push_back(kind == Lengths::kWhole || b == 0 ? kSteps : some);
    }
    start.push_back(0);
    for (int64_t t = 0; t < kSteps; ++t) {
      const auto there = std::count_if(lengths.begin(), lengths.end(),
                                       [&](int64_t length) { return !packed || length > t; });
      start.push_back(start.back() + there);
      for (int64_t b = 0; b < batch; ++b) reset.push_back((t + 2 * b) % 3 == 0);
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

dim3 grid_for(int64_t threads, int directions) {
  return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads), directions);
}

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), int64_t threads, int directions, cudaStream_t stream,
                const Arguments&... arguments) {
  return launch(kernel, {grid_for(threads, directions), kThreads, 0, stream},
                static_cast<Parameters>(arguments)...);
}

// The step kernels, with plain products between them.
cudaError_t forward_by_steps(const ForwardRecurrence& r, const Tensors& t, cudaStream_t stream) {
  const int64_t B = r.rows.batch, H = r.hidden_size;
  Until until;
  ForwardStep step{r, 0, B, {}, {}};
  for (int d = 0; d < kDirections; ++d) {
    step.product[d] = part(t.product, d, B * H, Dtype::kFloat64);
    step.state[d] = r.direction[d].hn;
    until.call([&] {
      return cudaMemcpyAsync(r.direction[d].hn, r.direction[d].hx, B * H * bytes_of(r.dtype),
                             cudaMemcpyDeviceToDevice, stream);
    });
  }
  for (; step.step < kSteps; ++step.step) {
    for (int d = 0; d < kDirections; ++d)
      until.call([&] {
        return run(product_kernel, B * H, 1, stream, r.dtype, r.direction[d].hn, H,
                   r.direction[d].w_hh, false, B, H, const_cast<void*>(step.product[d]));
      });
    until.call([&] { return launch_forward_step(step, stream); });
  }
  return until.error;
}

// grad_hx comes in the accumulation type.
cudaError_t backward_by_steps(const BackwardRecurrence& r, const Tensors& t, const Layout& layout,
                              cudaStream_t stream) {
  const int64_t B = r.rows.batch, H = r.hidden_size;
  Until until;
  BackwardStep step{r, 0, B, {}, {}};
  for (int d = 0; d < kDirections; ++d) {
    step.product[d] = part(t.product, d, B * H, Dtype::kFloat64);
    step.grad_hx[d] = r.direction[d].grad_hx;
  }
  for (; step.step <= kSteps; ++step.step) {
    for (int d = 0; d < kDirections; ++d) {
      const BackwardDirection& own = r.direction[d];
      const int64_t after = own.reverse ? step.step - 1 : kSteps - step.step;
      if (after < 0 || after >= kSteps) continue;
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

bool Variant::tf32() const {
  return kConfigurations[choice.configuration].arithmetic == Arithmetic::kTF32;
}

std::vector<Variant> variants(const Device& device) {
  std::vector<Variant> found;
  for (const Configuration& c : kConfigurations) {
    if (c.kernel == Kernel::kTorch) continue;
    for (const Dtype dtype :
         {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat64}) {
      const Problem small{dtype, false, true, kSteps, 1, 1, 1};
      if (const auto choice = choice_of(c, small, device)) found.push_back({*choice, dtype});
    }
  }
  return found;
}

const char* name_of(Lengths lengths) {
  const char* const names[] = {"whole", "packed", "lengths", "marks"};
  return names[static_cast<int>(lengths)];
}

std::string Verdict::fault() const {
  char text[200];
  if (gave_up.yes) {
    std::snprintf(text, sizeof text,
                  "block %u, thread %u waited in vain for exchange %u with another block",
                  gave_up.block, gave_up.thread, gave_up.exchange);
  } else if (timed_out) {
    std::snprintf(text, sizeof text, "it did not end within %d seconds", kCheckSeconds);
  } else if (error != cudaSuccess) {
    return cudaGetErrorString(error);
  } else if (!is_right()) {
    std::snprintf(text, sizeof text, "%s is off by %.2g, allowed are %.2g", where.c_str(), worst,
                  allowed);
  } else {
    return "";
  }
  return text;
}

int64_t check_bytes(const Variant& variant) { return Tensors(variant, nullptr).used; }

Verdict check_variant(const Variant& v, Lengths lengths, void* workspace, cudaStream_t stream) {
  const Tensors t(v, static_cast<char*>(workspace));
  const int64_t B = t.s.batch, H = t.s.hidden_size, features = t.s.features();
  const Layout layout(lengths, B);
  const bool packed = lengths == Lengths::kPacked, marks = lengths == Lengths::kMarks;
  const bool by_steps = v.choice.kernel == Kernel::kStep;
  Until until;

  // Inputs, and NaN where results are to come.
  const auto fill = [&](void* data, int64_t count, double scale) {
    static constexpr double kUnit = 1.7320508;  // of a uniform number of deviation 1
    const auto seed = static_cast<uint32_t>(static_cast<char*>(data) - static_cast<char*>(t.w_hh));
    until.call([&] {
      return run(fill_kernel, count, 1, stream, v.dtype, data, count, kUnit * scale, seed);
    });
  };
  until.call([&] { return cudaMemsetAsync(workspace, 0xff, t.used, stream); });
  until.call([&] { return cudaMemsetAsync(t.worst, 0, 8, stream); });
  until.call([&] { return cudaMemsetAsync(t.gave_up, 0, sizeof(GaveUp), stream); });
  fill(t.w_hh, kDirections * H * H, 1 / std::sqrt(static_cast<double>(H)));
  for (void* bias : {t.b_ih, t.b_hh}) fill(bias, features, 0.3);
  for (void* state : {t.hx, t.grad_hn}) fill(state, t.s.states(), 1);
  for (void* sequence : {t.igates, t.grad_output}) fill(sequence, t.s.elements(), 1);
  // As the operators have it: over the input's part of the pre-activations.
  const auto upload = [&](void* to, const void* from, int64_t bytes) {
    until.call([&] { return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream); });
  };
  upload(t.output, t.igates, t.s.elements() * bytes_of(v.dtype));

  Rows rows{kSteps, B, nullptr, nullptr, nullptr, nullptr, B, 1};
  if (packed) {
    until.call([&] {
      return launch_packed_rows(layout.lengths.data(), B, kSteps, t.lengths, t.start, stream);
    });
    rows.start = t.start;
  } else if (lengths != Lengths::kWhole) {
    upload(t.given_lengths, layout.lengths.data(), B * 8);
    until.call([&] { return launch_check_lengths(t.given_lengths, B, kSteps, t.lengths, stream); });
  }
  if (lengths != Lengths::kWhole) rows.lengths = t.lengths;
  if (marks) {
    upload(t.order, layout.order.data(), B * 8);
    upload(t.reset, layout.reset.data(), kSteps * B);
    rows.order = t.order;
    rows.reset = t.reset;
  }

  // tanh with rows of one length and with resets, relu with the others.
  const auto f = packed || lengths == Lengths::kPadded ? Nonlinearity::kRelu : Nonlinearity::kTanh;
  ForwardRecurrence forward{v.dtype, f, v.tf32(), H, rows, kDirections, {}, t.gave_up};
  BackwardRecurrence backward{v.dtype, f, v.tf32(), H, rows, kDirections, {}, t.gave_up};
  const Dtype wide = v.dtype == Dtype::kFloat64 ? v.dtype : Dtype::kFloat32;
  for (int d = 0; d < kDirections; ++d) {
    const auto sequence = [&](void* x) {
      return Sequence{part(x, d, H, v.dtype), packed ? 0 : B * features, features};
    };
    const auto state = [&](void* x) { return part(x, d, B * H, v.dtype); };
    const void* w_hh = part(t.w_hh, d, H * H, v.dtype);
    forward.direction[d] = {
        d == 1,           w_hh,       part(t.b_ih, d, H, v.dtype), part(t.b_hh, d, H, v.dtype),
        state(t.hx),      H,          sequence(t.output),          sequence(t.output),
        sequence(t.copy), state(t.hn)};
    backward.direction[d] = {d == 1,
                             w_hh,
                             sequence(t.output),
                             sequence(t.grad_output),
                             state(t.grad_hn),
                             sequence(t.grad_pre),
                             by_steps ? part(t.grad_hx, d, B * H, wide) : state(t.grad_hx)};
  }
  until.call([&] {
    return by_steps ? forward_by_steps(forward, t, stream)
                    : forward_launcher(v.choice.kernel)(forward, v.choice, stream);
  });
  until.call([&] {
    return by_steps ? backward_by_steps(backward, t, layout, stream)
                    : backward_launcher(v.choice.kernel)(backward, v.choice, stream);
  });

  for (int d = 0; d < kDirections; ++d)
    forward.direction[d].igates.data = part(t.igates, d, H, v.dtype);
  const int64_t elements = (kSteps + 1) * B * H;
  until.call(
      [&] { return run(compare_forward_kernel, elements, kDirections, stream, forward, t.worst); });
  until.call([&] {
    return run(compare_backward_kernel, elements, kDirections, stream, backward,
               by_steps ? wide : v.dtype, t.worst);
  });
  Verdict verdict;
  verdict.allowed = allowed(v);
  cudaError_t found = cudaSuccess;
  verdict.timed_out = !ends_in_time(stream, &found);
  verdict.error = until.error != cudaSuccess ? until.error : found;
  if (verdict.timed_out || verdict.error != cudaSuccess) {
    cudaGetLastError();  // so that nobody else finds it
    return verdict;
  }
  uint64_t worst = 0;
  upload(&worst, t.worst, 8);
  upload(&verdict.gave_up, t.gave_up, sizeof(GaveUp));
  until.call([&] { return cudaStreamSynchronize(stream); });
  verdict.error = until.error;
  verdict.worst = std::bit_cast<float>(static_cast<uint32_t>(worst >> 32));
  verdict.where = Place32{kSteps, B, H}.name(static_cast<uint32_t>(worst));
  return verdict;
}

}  // namespace fastrnn::cuda
