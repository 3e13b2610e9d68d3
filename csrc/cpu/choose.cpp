// The plan of a call on the CPU, and which kernels run it: every threshold, with its reason.
#include "cpu/choose.h"

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"

namespace fastrnn::cpu {
namespace {

// `python -m benchmarks.thresholds` measures what each of these is worth on a machine. Bytes are of
// the matrices as they lie in memory; work is in multiply-adds.

// Below this work of a call, starting threads costs more than it saves.
constexpr int64_t kLeastWork = 120'000;
// Rows do not depend on one another, so threads share them if there are enough: two each. Ten each
// if w_hh exceeds a core's own cache, which holds a thread's share of the columns, and has at least
// two panels for each thread. (Tuned on two threads.)
constexpr int64_t kLeastRows = 2, kLeastRowsUncached = 10;
constexpr int64_t kCachedBytes = 2 << 20;
constexpr int64_t kManyColumns = 128;
// With fewer rows they share columns, if a step is long enough to pay for the wait at its end.
constexpr int64_t kLeastStepWork = 250'000;

// Packing costs more than it saves if all steps together have few rows, or if there is one step.
// But each dot product with an unpacked row ends in a lane reduction, too costly for small H.
constexpr int64_t kLeastUnpackedSize = 64;
constexpr int64_t kFewRows = 16;
constexpr int64_t kFewRowsOfOneStep = 40, kFewRowsOfOneStepBack = 96;

// For one or two rows a single chain of sums is too slow.
constexpr int64_t kSplitBatch = 2;

// A step's product includes the input projection if weights are packed, rows fill the tiles, and
// w_ih is small enough to stay in cache beside w_hh; with a few features, always.
constexpr int64_t kTileRows = 12;
constexpr int64_t kFusedBytes = 256 << 10;
constexpr int64_t kFewFeatures = 3;

// Forward, steps of this many units are long enough to pay for prefetching rows.
constexpr int64_t kFetchedSize = 128;
// A larger matrix does not stay in the nearer caches: prefetch it at each reading.
constexpr int64_t kNearBytes = 1 << 20;

// With vectors of four floats, torch's matrix products are faster than our kernels for steps of
// this work and more. Measured with SSE2, not yet with NEON.
constexpr int64_t kLargeStep = 400'000;
constexpr int64_t kShortVector = 16;

int threads_for(const Problem& p, int available) {
  // As floats, which do not overflow.
  const double H = p.hidden_size, D = p.num_directions, I = p.input_size;
  const double per_row = D * H * (I + H + (p.num_layers - 1) * (D * H + H));
  const double rows = p.packed ? p.rows : p.seq_len * p.batch;
  return available > 1 && rows * per_row >= kLeastWork ? available : 1;
}

bool shares_columns(const Problem& p, int threads) {
  const int64_t weights = p.hidden_size * p.hidden_size;
  const bool uncached =
      weights * storage_bytes(p.dtype) >= kCachedBytes && p.hidden_size >= kManyColumns * threads;
  // The states of 16-bit types pass from step to step in each thread's own scratch.
  return threads > 1 && storage_bytes(p.dtype) > 2 &&
         p.batch < (uncached ? kLeastRowsUncached : kLeastRows) * threads &&
         static_cast<double>(p.batch) * weights >= kLeastStepWork;
}

// By the rows that are valid, so that padded and packed calls take the same form.
Form form_for(const Problem& p, const KernelTraits& kernels) {
  const bool one_step = p.rows == p.first_rows && kernels.packed_form != Form::kPackedPairs;
  const int64_t few = !one_step ? kFewRows : p.backward ? kFewRowsOfOneStepBack : kFewRowsOfOneStep;
  const bool unpacked = p.hidden_size >= kLeastUnpackedSize && p.rows <= few;
  return unpacked || !p.may_pack ? Form::kAsTheyCame : kernels.packed_form;
}

// Steps of the rows before row i, as if rows were sorted by length.
int64_t steps_before(const Steps& s, int64_t i) {
  int64_t sum = 0;
  for (int64_t t = 0; t < s.seq_len; ++t) sum += s.active[t] < i ? s.active[t] : i;
  return sum;
}

// The first row at which a fraction index / size of all steps has been dealt.
int64_t row_at(const Steps& s, int index, int size) {
  if (index == 0) return 0;
  if (index == size) return s.batch;
  if (!s.active) return s.batch * index / size;
  const int64_t target = steps_before(s, s.batch) * index / size;
  int64_t low = 0, high = s.batch;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    steps_before(s, middle) < target ? low = middle + 1 : high = middle;
  }
  return low;
}

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

const Kernels& avx512_with_bf16_kernels() {
  static const Kernels kernels = [] {
    Kernels k = avx512_kernels();
    k.name = "avx512_bf16";
    k.typed[static_cast<int>(Dtype::kBFloat16)] = avx512_bf16_kernels();
    return k;
  }();
  return kernels;
}
#endif

}  // namespace

Plan choose(const Problem& p, const KernelTraits& kernels, int threads) {
  const int64_t H = p.hidden_size;
  Plan plan{};
  plan.threads = threads_for(p, threads);
  plan.share_columns = shares_columns(p, plan.threads);
  // Forward, a thread without rows would only pack; backward, it shares the weights' gradients.
  if (!p.backward && !plan.share_columns && p.batch < plan.threads)
    plan.threads = static_cast<int>(std::max<int64_t>(p.batch, 1));
  plan.share_input_grad = p.rows >= kTileRows * plan.threads;
  plan.form = form_for(p, kernels);
  plan.split = p.batch <= kSplitBatch;
  // A step then multiplies first what the step before finished first, so that the activations of
  // the rest overlap with products. If a panel exceeds the nearest cache, reusing its last part is
  // worth more.
  plan.opposed = H * kernels.panel_bytes <= kNearestBytes;
  // Rows of 16 bits are widened into copies first.
  plan.fetch_rows = storage_bytes(p.dtype) > 2 && !p.packed && (p.backward || H >= kFetchedSize);

  const bool packs = plan.form != Form::kAsTheyCame;
  const int64_t bytes = packs ? accumulator_bytes(p.dtype) : storage_bytes(p.dtype);
  plan.fetch_w_hh = H * H * bytes > kNearBytes;
  for (int above = 0; above < 2; ++above) {
    const int64_t I = above ? p.num_directions * H : p.input_size;
    plan.fetch_w_ih[above] = I * H * bytes > kNearBytes;
    plan.fused_rows[above] = I <= kFewFeatures                       ? 0
                             : packs && I * H * bytes <= kFusedBytes ? kTileRows
                                                                     : kNever;
  }
  return plan;
}

Part choose_part(const Plan& plan, const Steps& steps, int index, int size) {
  if (plan.share_columns) return {0, steps.batch, index, size};
  return {row_at(steps, index, size), row_at(steps, index + 1, size), 0, 1};
}

int64_t torch_step_work(const KernelTraits& kernels) {
  return kernels.vector_bytes <= kShortVector ? kLargeStep : kNever;
}

const Kernels* find_kernels(const char* name) {
  if (std::strcmp(name, baseline_kernels().name) == 0) return &baseline_kernels();
#if defined(__x86_64__)
  if (std::strcmp(name, "avx2") == 0 && has_avx2()) return &avx2_kernels();
  if (std::strcmp(name, "avx512") == 0 && has_avx512()) return &avx512_kernels();
  if (std::strcmp(name, "avx512_bf16") == 0 && has_avx512() &&
      __builtin_cpu_supports("avx512bf16")) {
    return &avx512_with_bf16_kernels();
  }
#endif
  return nullptr;
}

const Kernels& select_kernels(const char* capability) {
  const bool is_default = std::strcmp(capability, "DEFAULT") == 0,
             is_avx2 = std::strcmp(capability, "AVX2") == 0;
  const char* const names[] = {"avx512_bf16", "avx512", "avx2"};
  for (int i = is_default ? 3 : is_avx2 ? 2 : 0; i < 3; ++i) {
    if (const Kernels* kernels = find_kernels(names[i])) return *kernels;
  }
  return baseline_kernels();
}

}  // namespace fastrnn::cpu
