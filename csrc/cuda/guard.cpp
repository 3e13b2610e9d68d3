#include "cuda/guard.h"

#include <ATen/ops/empty.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>

#include "cuda/build.h"
#include "cuda/context.h"
#include "cuda/proven.h"

namespace fastrnn::cuda {
namespace {

Variant steps_in(Dtype dtype) {
  constexpr auto kStep = std::find_if(kConfigurations.begin(), kConfigurations.end(),
                                      [](const auto& c) { return c.kernel == Kernel::kStep; });
  return {{.kernel = kStep->kernel, .configuration = kStep->place}, dtype};
}

double seconds_of(const std::function<void()>& run, cudaStream_t stream) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3; ++i) {
    synchronize(stream);
    const auto begin = std::chrono::steady_clock::now();
    run();
    synchronize(stream);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (i > 0) least = std::min(least, took.count());  // the first warms up
  }
  return least;
}

}  // namespace

Checks checks_from_environment() {
  const char* const value = std::getenv("FASTRNN_CHECK");
  const std::string text = value ? value : "";
  if (text.empty() || text == "1") return Checks::kUnproven;
  if (text == "0") return Checks::kNone;
  if (text == "always") return Checks::kAll;
  throw std::invalid_argument("rnn: expected FASTRNN_CHECK to be 0, 1 or always, got " + text);
}

const std::string& Guard::Entry::text() const {
  static const std::string nothing;
  return state() == State::kRefused ? why_ : nothing;
}

void Guard::Entry::refuse(const std::string& why) {
  if (state() == State::kRefused) return;
  why_ = why;
  state_.store(State::kRefused, std::memory_order_release);
}

Guard::Guard(const std::string& name, at::Device torchs, const Device& device, Checks checks)
    : name_(name), torchs_(torchs), device_(device), entries_(kConfigurations.size() * kDtypes) {
  const bool proven =
      device.compiled_for == device.capability && is_proven(device.capability, kernels_hash());
  if (checks == Checks::kNone || (checks == Checks::kUnproven && proven))
    for (Entry& entry : entries_) entry.serve();
  const OutsideCaptures outside;
  told_ = static_cast<GaveUp*>(memory_for_all(2 * entries_.size() * sizeof(GaveUp)));
}

Guard::Guard(const std::string& why_no_kernels) { whole_.refuse(why_no_kernels); }

size_t Guard::index_of(const Variant& v) {
  return v.choice.configuration * kDtypes + static_cast<size_t>(v.dtype);
}

GaveUp* Guard::told(const Variant& v, bool backward) const {
  return told_ ? told_ + 2 * index_of(v) + (backward ? 1 : 0) : nullptr;
}

std::string Guard::take_told(const Variant& v) const {
  for (const bool backward : {false, true}) {
    GaveUp* const where = told(v, backward);
    if (!where || !*static_cast<const volatile uint32_t*>(&where->yes)) continue;
    Verdict verdict;
    verdict.gave_up = *where;
    *where = {};
    return verdict.fault() + ", in an earlier call, whose results are NaN";
  }
  return "";
}

bool Guard::is_known(const Variant& v) const {
  return entries_[index_of(v)].state() != Entry::State::kUnknown;
}

bool Guard::serves(const Variant& v, cudaStream_t stream) {
  if (!stopped_.text().empty()) throw DeviceStopped(stopped_.text());
  const Variant steps = steps_in(v.dtype);
  if (!is_known(v) || !is_known(steps)) {
    if (is_capturing(stream)) return false;
    run_checks(steps, stream);
    run_checks(v, stream);
  }
  if (const std::string why = take_told(v); !why.empty()) refuse(v, why);
  return whole_.text().empty() && entries_[index_of(v)].state() == Entry::State::kServes;
}

std::string Guard::why_not(const Variant& v, cudaStream_t stream) {
  if (serves(v, stream)) return "";
  if (!is_known(v) || !is_known(steps_in(v.dtype)))
    return described(v) +
           " has not been checked yet, and no check can run during stream capture: call it once "
           "before the capture, or set FASTRNN_CHECK=0";
  const std::string& own = entries_[index_of(v)].text();
  return own.empty() ? why_not() : own;
}

void Guard::run_checks(const Variant& v, cudaStream_t stream) {
  if (is_known(v)) return;
  const OutsideCaptures outside;
  const cudaError_t before = synchronize(stream);
  TORCH_CHECK(before == cudaSuccess, "rnn: the device failed before this call: ", text_of(before));
  const Tensor workspace =
      at::empty({check_bytes(v)}, at::TensorOptions(at::kByte).device(torchs_));
  const std::lock_guard lock(mutex_);
  if (is_known(v)) return;  // another thread was first
  for (const Trial& trial : kTrials) {
    const Verdict verdict = check_variant(v, trial, workspace.mutable_data_ptr(), stream);
    if (verdict.is_right()) continue;
    TORCH_CHECK_WITH(OutOfMemoryError, verdict.error != cudaErrorMemoryAllocation,
                     "rnn: not enough memory on the device to check ", described(v));
    TORCH_CHECK(!verdict.timed_out, "rnn: the check of ", described(v), ": ", verdict.fault(),
                ". The GPU is busy, or the kernel hangs; FASTRNN_CUDA_KERNEL=torch avoids it");
    if (query(stream) != cudaSuccess) {
      stopped_.refuse("rnn: the check of " + described(v) +
                      " stopped the device: " + verdict.fault() +
                      ". This process can no longer use it. FASTRNN_CUDA_KERNEL=torch avoids the "
                      "kernel. Please report this: https://github.com/fastrnn/fastrnn/issues");
      throw DeviceStopped(stopped_.text());
    }
    return refuse_locked(v, verdict.fault());
  }
  entries_[index_of(v)].serve();
}

void Guard::refuse(const Variant& variant, const std::string& why) {
  const std::lock_guard lock(mutex_);
  refuse_locked(variant, why);
}

void Guard::refuse_locked(const Variant& v, const std::string& why) {
  Entry& entry = entries_[index_of(v)];
  if (entry.state() == Entry::State::kRefused) return;
  entry.refuse(described(v) + ": " + why);
  // They serve what nothing else can.
  if (v.choice.kernel == Kernel::kStep) whole_.refuse(entry.text());
  TORCH_WARN(
      "fastrnn: ", entry.text(),
      ". From now on such calls use torch's operator, or kernels that passed their checks. Please "
      "report this, with the output of `python -m fastrnn check`: "
      "https://github.com/fastrnn/fastrnn/issues");
}

std::string Guard::described(const Variant& v) const {
  const int driver = driver_version();
  const std::string cuda = std::to_string(driver / 1000) + '.' + std::to_string(driver / 10 % 100);
  return name_of(v.choice) + " in " + name_of(v.dtype) + " on " + name_ + " (sm_" +
         std::to_string(device_.capability) + ", driver for CUDA " + cuda + ", torch " +
         TORCH_VERSION + ", kernels " + kernels_hash() + ")";
}

bool Guard::is_faster(const std::vector<int64_t>& key, cudaStream_t stream,
                      const std::function<void()>& theirs, const std::function<void()>& ours) {
  {
    const std::lock_guard lock(faster_mutex_);
    if (const auto known = faster_.find(key); known != faster_.end()) return known->second;
  }
  if (is_capturing(stream)) return false;
  const OutsideCaptures outside;
  bool faster = false;
  try {
    faster = seconds_of(theirs, stream) < seconds_of(ours, stream);
  } catch (const c10::Error&) {  // ours serves, or says why not
  }
  const std::lock_guard lock(faster_mutex_);
  return faster_.emplace(key, faster).first->second;
}

Choice allowed_choice(const Problem& problem, const Context& context, bool torch_can_serve) {
  const Choice choice = choose(problem, context.device, context.forced);
  if (!context.guard || choice.kernel == Kernel::kTorch) return choice;
  const Variant variant{choice, problem.dtype};
  // A forced kernel is taken unchecked, but not the step kernels in place of torch's operator.
  const bool forced = !context.forced.empty() && context.forced != name_of(Kernel::kTorch);
  if (forced) {
    const std::string why = context.guard->take_told(variant);
    TORCH_CHECK(why.empty(), "rnn: ", name_of(choice), ": ", why);
    return choice;
  }
  if (context.guard->serves(variant, context.stream)) return choice;
  Problem otherwise = problem;
  otherwise.torch_can_serve = torch_can_serve;
  const Kernel next = torch_can_serve ? Kernel::kTorch : Kernel::kStep;
  const Choice other = choose(otherwise, context.device, name_of(next));
  if (other.kernel == Kernel::kTorch) return other;
  const std::string why = context.guard->why_not({other, problem.dtype}, context.stream);
  TORCH_CHECK(why.empty(), "rnn: ", why);
  return other;
}

}  // namespace fastrnn::cuda
