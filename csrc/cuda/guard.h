// What may run on a device, and why not: one place that knows, and why_not() to ask it. A
// configuration that nobody has proved on such a GPU (proven.h) is checked before its first use
// (check.h). One that is wrong or refused serves no more calls: they go to torch's operator or,
// where that cannot serve them, take the step kernels.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/check.h"
#include "ops.h"

namespace fastrnn::cuda {

// FASTRNN_CHECK: 0 checks nothing, 1 what is not proven, "always" everything.
enum class Checks { kNone, kUnproven, kAll };
Checks checks_from_environment();  // throws for any other value

class Guard {
 public:
  // On a device of this name; the checks' memory comes from torch's.
  Guard(const std::string& name, at::Device torchs, const Device& device, Checks checks);
  // No kernel of this build runs on the device.
  explicit Guard(const std::string& why_no_kernels);

  const Device& device() const { return device_; }

  // Why no kernel serves; empty: some do.
  const std::string& why_not() const { return whole_.text(); }
  // Why this one does not. The first question about each runs its check, and waits for it; while
  // the stream captures it does not run, and the kernel does not serve as yet.
  std::string why_not(const Variant& variant, cudaStream_t stream);

  // From now on it does not serve; a warning says so.
  void refuse(const Variant& variant, const std::string& why);

  // Where a variant's kernels tell that a wait gave up.
  GaveUp* told(const Variant& variant, bool backward) const;

  // Whether `theirs` serves a call faster than `ours`, timed at the first question of each key.
  bool is_faster(const std::vector<int64_t>& key, cudaStream_t stream,
                 const std::function<void()>& theirs, const std::function<void()>& ours);

 private:
  // What serves or not. Written once, before it is refused.
  class Entry {
   public:
    enum class State { kUnknown, kServes, kRefused };
    State state() const { return state_.load(std::memory_order_acquire); }
    const std::string& text() const;
    void serve() { state_.store(State::kServes, std::memory_order_release); }
    void refuse(const std::string& why);

   private:
    std::atomic<State> state_{State::kUnknown};
    std::string why_;
  };

  static size_t index_of(const Variant& variant);
  void run_checks(const Variant& variant, cudaStream_t stream);
  void refuse_locked(const Variant& variant, const std::string& why);
  std::string described(const Variant& variant) const;

  std::string name_;
  at::Device torchs_ = at::kCPU;
  Device device_{};
  std::mutex mutex_;  // of checks, and of all that is written
  Entry whole_;       // the device
  std::vector<Entry> entries_;
  GaveUp* told_ = nullptr;  // [configuration, dtype, pass], never freed: kernels may be running
  std::map<std::vector<int64_t>, bool> faster_;
};

struct Context;

// What a call takes: the kernel that is chosen or, where that does not serve, torch's operator if
// it can, else the step kernels. A kernel that the user forces is taken as it is.
Choice allowed_choice(const Problem& problem, const Context& context, bool torch_can_serve);

}  // namespace fastrnn::cuda
