#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>

#include "cuda/check.cuh"
#include "cuda/check.h"
#include "cuda/check_steps.cuh"
#include "cuda/launchers.h"
#include "cuda/step.h"

namespace fastrnn::cuda {
namespace {

// Whether the stream finishes in time; *error is the device's.
bool ends_in_time(cudaStream_t stream, cudaError_t* error) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(kCheckSeconds);
  while ((*error = cudaStreamQuery(stream)) == cudaErrorNotReady) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}

// One rounding of a result to its type, and the error allowed in the sum of a product: tensor cores
// add in an order and with roundings of their own.
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

// One variant's forward and backward pass of a trial, and their comparison.
class Check {
 public:
  Check(const Variant& v, const Trial& trial, void* workspace, cudaStream_t stream)
      : v_(v),
        trial_(trial),
        stream_(stream),
        sizes_(v.choice, trial),
        layout_(trial.lengths, sizes_),
        t_(sizes_, v.dtype, static_cast<char*>(workspace)),
        packed_(trial.lengths == Lengths::kPacked),
        by_steps_(v.choice.kernel == Kernel::kStep),
        wide_(v.dtype == Dtype::kFloat64 ? v.dtype : Dtype::kFloat32),
        rows_{.seq_len = sizes_.seq_len,
              .batch = sizes_.batch,
              .lengths = nullptr,
              .start = nullptr,
              .order = nullptr,
              .reset = nullptr,
              .reset_step_stride = sizes_.batch,
              .reset_row_stride = 1} {}

  Verdict run() {
    fill_inputs();
    set_rows();
    set_recurrences();
    until_.call([&] {
      return by_steps_ ? forward_by_steps(forward_, t_, stream_)
                       : forward_launcher(v_.choice.kernel)(forward_, v_.choice, stream_);
    });
    until_.call([&] {
      return by_steps_ ? backward_by_steps(backward_, t_, layout_, stream_)
                       : backward_launcher(v_.choice.kernel)(backward_, v_.choice, stream_);
    });
    compare();
    return verdict();
  }

 private:
  void copy(void* to, const void* from, int64_t bytes) {
    until_.call([&] { return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_); });
  }
  void* unless_bare(void* x) const { return trial_.bare ? nullptr : x; }

  void fill(void* data, int64_t count, double scale) {
    constexpr double kUnit = 1.7320508;  // of a uniform number of deviation 1
    const auto seed = static_cast<uint32_t>(static_cast<char*>(data) - static_cast<char*>(t_.w_hh));
    until_.call([&] {
      return cuda::run(fill_kernel, count, 1, stream_, v_.dtype, data, count, kUnit * scale, seed);
    });
  }

  // And NaN where results will be written.
  void fill_inputs() {
    const int64_t H = sizes_.hidden_size, I = sizes_.input_size();
    until_.call([&] { return cudaMemsetAsync(t_.w_hh, 0xff, t_.used, stream_); });
    until_.call([&] { return cudaMemsetAsync(t_.found, 0, sizeof(Findings), stream_); });
    until_.call([&] { return cudaMemsetAsync(t_.gave_up, 0, sizeof(GaveUp), stream_); });
    fill(t_.w_hh, sizes_.directions * H * H, 1 / std::sqrt(static_cast<double>(H)));
    for (void* bias : {t_.b_ih, t_.b_hh}) fill(bias, sizes_.features(), 0.3);
    for (void* state : {t_.hx, t_.grad_hn}) fill(state, sizes_.states(), 1);
    fill(t_.grad_output, sizes_.elements(), 1);
    // As the operators have it: between layers grad_pre over the gradient of h, and h over the
    // input's part of its pre-activation.
    const int64_t bytes = sizes_.elements() * bytes_of(v_.dtype);
    if (trial_.full) copy(t_.grad_pre, t_.grad_output, bytes);
    fill(t_.input, sizes_.seq_len * sizes_.batch * I, 1);
    fill(t_.igates, sizes_.elements(), 1);
    copy(t_.output, t_.igates, bytes);
  }

  void set_rows() {
    const int64_t T = sizes_.seq_len, B = sizes_.batch;
    if (packed_) {
      until_.call(
          [&] { return launch_packed_rows(layout_.lengths.data(), B, T, t_.lengths, stream_); });
      rows_.start = t_.start;
    } else if (trial_.lengths != Lengths::kWhole) {
      copy(t_.given_lengths, layout_.lengths.data(), B * 8);
      rows_.order = trial_.lengths == Lengths::kMarks ? t_.order : nullptr;
      until_.call([&] {
        return launch_check_lengths(t_.given_lengths, B, T, t_.lengths,
                                    rows_.order ? t_.order : nullptr, stream_);
      });
    }
    if (trial_.lengths != Lengths::kWhole) rows_.lengths = t_.lengths;
    if (trial_.lengths == Lengths::kMarks) {
      copy(t_.right_order, layout_.order.data(), B * 8);
      copy(t_.reset, layout_.reset.data(), T * B);
      rows_.reset = t_.reset;
      if (by_steps_) others_.order = t_.order, others_.right_order = t_.right_order;
    }
  }

  void set_recurrences() {
    const int D = static_cast<int>(sizes_.directions);
    forward_ = {.dtype = v_.dtype,
                .nonlinearity = trial_.nonlinearity,
                .tf32 = v_.tf32(),
                .hidden_size = sizes_.hidden_size,
                .rows = rows_,
                .num_directions = D,
                .direction = {},
                .gave_up = t_.gave_up};
    backward_ = {.dtype = v_.dtype,
                 .nonlinearity = trial_.nonlinearity,
                 .tf32 = v_.tf32(),
                 .hidden_size = sizes_.hidden_size,
                 .rows = rows_,
                 .num_directions = D,
                 .direction = {},
                 .gave_up = t_.gave_up};
    for (int d = 0; d < D; ++d) set_direction(d);
  }

  Sequence sequence(void* x, int d) const {
    const int64_t features = sizes_.features();
    return {part(x, d, sizes_.hidden_size, v_.dtype), packed_ ? 0 : sizes_.batch * features,
            features};
  }

  // Of one layer, for both directions.
  Sequence input() const {
    const int64_t I = sizes_.input_size();
    return {t_.input, packed_ ? 0 : sizes_.batch * I, I};
  }

  void set_direction(int d) {
    const int64_t H = sizes_.hidden_size, B = sizes_.batch;
    const auto state = [&](void* x) { return part(unless_bare(x), d, B * H, v_.dtype); };
    const auto bias = [&](void* x) { return part(unless_bare(x), d, H, v_.dtype); };
    const void* w_hh = part(t_.w_hh, d, H * H, v_.dtype);
    const Sequence output = sequence(t_.output, d);
    forward_.direction[d] = {.reverse = d == 1,
                             .w_hh = w_hh,
                             .b_ih = bias(t_.b_ih),
                             .b_hh = bias(t_.b_hh),
                             .hx = state(t_.hx),
                             .hx_row_stride = H,
                             .igates = output,
                             .output = output,
                             .copy = sequence(unless_bare(t_.copy), d),
                             .hn = part(t_.hn, d, B * H, v_.dtype)};
    // The user's own, of rows one behind the other.
    const Sequence of_user{t_.grad_output, sizes_.features(), sizes_.seq_len * sizes_.features()};
    const Sequence of_layer = sequence(trial_.full ? t_.grad_pre : t_.grad_output, d);
    void* const grad_hx = part(unless_bare(t_.grad_hx), d, B * H, by_steps_ ? wide_ : v_.dtype);
    backward_.direction[d] = {.reverse = d == 1,
                              .w_hh = w_hh,
                              .output = output,
                              .grad_output = trial_.bare ? of_user : of_layer,
                              .grad_hn = state(t_.grad_hn),
                              .grad_pre = sequence(t_.grad_pre, d),
                              .grad_hx = grad_hx};
    if (!by_steps_) return;
    others_.previous[d] = sequence(t_.previous, d);
    if (!packed_) others_.masked[d] = sequence(t_.masked, d);
  }

  // With the inputs as they were before results were written over them.
  void compare() {
    const int64_t H = sizes_.hidden_size;
    for (int d = 0; d < sizes_.directions; ++d) {
      ForwardDirection& own = forward_.direction[d];
      own.igates.data = part(t_.igates, d, H, v_.dtype);
      if (trial_.full)
        backward_.direction[d].grad_output.data = part(t_.grad_output, d, H, v_.dtype);
      if (!by_steps_) continue;
      until_.call([&] {
        return launch_previous_states({.dtype = v_.dtype,
                                       .rows = rows_,
                                       .hidden_size = H,
                                       .reverse = own.reverse,
                                       .output = own.output,
                                       .hx = own.hx,
                                       .hx_row_stride = own.hx_row_stride,
                                       .previous = others_.previous[d]},
                                      stream_);
      });
      if (packed_) continue;  // whose rows have no steps beyond their lengths
      until_.call([&] {
        return launch_masked_copy({.dtype = v_.dtype,
                                   .rows = rows_,
                                   .features = H,
                                   .from = own.igates,
                                   .to = others_.masked[d]},
                                  stream_);
      });
    }
    const int64_t elements = (sizes_.seq_len + 1) * sizes_.batch * H;
    const int D = static_cast<int>(sizes_.directions);
    until_.call([&] {
      return cuda::run(compare_forward_kernel, elements, D, stream_, forward_, others_, t_.found);
    });
    until_.call([&] {
      return cuda::run(compare_backward_kernel, elements, D, stream_, backward_,
                       by_steps_ ? wide_ : v_.dtype, t_.found);
    });
    if (by_steps_) compare_weight_grads();
  }

  void compare_weight_grads() {
    const int64_t H = sizes_.hidden_size, I = sizes_.input_size();
    const int D = static_cast<int>(sizes_.directions);
    WeightGrads task{.dtype = v_.dtype,
                     .rows = rows_,
                     .input_size = I,
                     .hidden_size = H,
                     .input = input(),
                     .num_directions = D,
                     .direction = {}};
    for (int d = 0; d < D; ++d) {
      const ForwardDirection& own = forward_.direction[d];
      const auto grad = [&](void* x, int64_t count) { return part(x, d, count, v_.dtype); };
      task.direction[d] = {.reverse = own.reverse,
                           .grad_pre = backward_.direction[d].grad_pre,
                           .output = own.output,
                           .hx = own.hx,
                           .hx_row_stride = own.hx_row_stride,
                           .grad_w_ih = grad(t_.grad_w_ih, H * I),
                           .grad_w_hh = grad(t_.grad_w_hh, H * H),
                           .grad_b_ih = grad(unless_bare(t_.grad_b_ih), H),
                           .grad_b_hh = grad(unless_bare(t_.grad_b_hh), H)};
    }
    until_.call([&] { return launch_weight_grads(task, stream_); });
    until_.call([&] {
      return cuda::run(compare_weight_grads_kernel, H * (I + H + 2), D, stream_, task, others_,
                       t_.found);
    });
  }

  Verdict verdict() {
    Verdict verdict;
    verdict.allowed = allowed(v_);
    const int64_t of_steps = layout_.start.back() * sizes_.features();
    const int copies = trial_.bare ? 0 : 1, of_step_kernels = by_steps_ ? (packed_ ? 1 : 2) : 0;
    verdict.to_compare =
        of_steps * (2 + copies + of_step_kernels) + sizes_.states() * (trial_.bare ? 1 : 2);
    if (by_steps_) {
      const int64_t columns = sizes_.input_size() + sizes_.hidden_size + (trial_.bare ? 0 : 2);
      verdict.to_compare += sizes_.features() * columns;
      verdict.to_compare += others_.order ? sizes_.batch : 0;
    }
    cudaError_t ended = cudaSuccess;
    verdict.timed_out = !ends_in_time(stream_, &ended);
    verdict.error = until_.error != cudaSuccess ? until_.error : ended;
    if (verdict.timed_out || verdict.error != cudaSuccess) {
      cudaGetLastError();  // so that nobody else sees it
      return verdict;
    }
    Findings found{};
    copy(&found, t_.found, sizeof found);
    copy(&verdict.gave_up, t_.gave_up, sizeof(GaveUp));
    until_.call([&] { return cudaStreamSynchronize(stream_); });
    verdict.error = until_.error;
    verdict.worst = std::bit_cast<float>(static_cast<uint32_t>(found.worst >> 32));
    verdict.where = Places{sizes_.seq_len, sizes_.batch, sizes_.hidden_size}.name(
        static_cast<uint32_t>(found.worst));
    verdict.compared = found.compared;
    return verdict;
  }

  const Variant& v_;
  const Trial& trial_;
  const cudaStream_t stream_;
  const Sizes sizes_;
  const Layout layout_;
  const Tensors t_;
  const bool packed_, by_steps_;
  const Dtype wide_;  // of grad_hx as the step kernels leave it
  Rows rows_;
  ForwardRecurrence forward_{};
  BackwardRecurrence backward_{};
  Others others_{};
  Until until_;
};

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
      const Problem small{.dtype = dtype,
                          .backward = false,
                          .tf32 = true,
                          .seq_len = 1,
                          .batch = 1,
                          .hidden_size = 1,
                          .num_directions = 1};
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
  return Check(v, trial, workspace, stream).run();
}

}  // namespace fastrnn::cuda
