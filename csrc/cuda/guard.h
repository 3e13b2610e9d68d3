// The one place that knows what may run on a device, and why not. A configuration that has not been
// proved on such a GPU (proven.h) is checked before its first use (check.h). One that is wrong or
// refused serves no more calls: inference goes to torch's operator, everything else to the step
// kernels, which are checked likewise.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/check.h"
#include "ops.h"

namespace fastrnn::cuda {

// FASTRNN_CHECK: 0 checks nothing, 1 what is not proven, "always" everything.
enum class Checks { kNone, kUnproven, kAll };
Checks checks_from_environment();  // throws for any other value

// A kernel has stopped the device for this process. Not a c10::Error, after which Python would try
// another path.
struct DeviceStopped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Guard {
 public:
  // On a device of this name; the checks' memory comes from torch's.
  Guard(const std::string& name, at::Device torchs, const Device& device, Checks checks);
  // No kernel of this build runs on the device.
  explicit Guard(const std::string& why_no_kernels);

  const Device& device() const { return device_; }

  // Why no kernel serves; empty if some do.
  const std::string& why_not() const { return whole_.text(); }
  // Whether this one serves. The first call for each variant runs its check, and waits for it;
  // during stream capture no check can run, and the variant does not serve yet. The step kernels
  // come first: every call may need them and what is checked with them.
  bool serves(const Variant& variant, cudaStream_t stream);
  // Whether it has been checked, or needs no check.
  bool is_known(const Variant& variant) const;
  // Why it does not serve; empty if it does.
  std::string why_not(const Variant& variant, cudaStream_t stream);

  // From now on it does not serve; a warning says so.
  void refuse(const Variant& variant, const std::string& why);

  // Where a variant's kernels report that a wait gave up; and such a report, which is then cleared.
  GaveUp* told(const Variant& variant, bool backward) const;
  std::string take_told(const Variant& variant) const;

  // Whether `theirs` serves a call faster than `ours`, timed at the first call for each key. False
  // if `theirs` fails.
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
  // Throws if they cannot run now, or stop the device; in that case so does every later call.
  void run_checks(const Variant& variant, cudaStream_t stream);
  void refuse_locked(const Variant& variant, const std::string& why);
  std::string described(const Variant& variant) const;

  std::string name_;
  at::Device torchs_ = at::kCPU;
  Device device_{};
  std::mutex mutex_;  // of checks, and of entries that are written
  Entry whole_;       // the device
  Entry stopped_;     // by a check
  std::vector<Entry> entries_;
  GaveUp* told_ = nullptr;  // [configuration, dtype, pass], never freed: kernels may be running
  std::mutex faster_mutex_;
  std::map<std::vector<int64_t>, bool> faster_;
};

struct Context;

// What a call takes: the chosen kernel or, if that does not serve, torch's operator if it can, else
// the step kernels. A kernel that the user forces is taken unchecked.
Choice allowed_choice(const Problem& problem, const Context& context, bool torch_can_serve);

}  // namespace fastrnn::cuda
