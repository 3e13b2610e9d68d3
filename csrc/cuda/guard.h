// What may run on a device, and why not: one place that knows, and why_not() to ask it. A
// configuration that nobody has proved on such a GPU (proven.h) is checked before its first use
// (check.h). One that is wrong or refused serves no more calls: inference goes to torch's operator,
// all else takes the step kernels, which are checked likewise.
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

// A kernel has stopped the device for this process. No c10::Error, after which Python would try
// another way.
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

  // Why no kernel serves; empty: some do.
  const std::string& why_not() const { return whole_.text(); }
  // Whether this one serves. The first question about each runs its check, and waits for it; while
  // the stream captures none is run, and it does not serve as yet. The step kernels come first:
  // every call may need them and what is checked with them.
  bool serves(const Variant& variant, cudaStream_t stream);
  // Whether it has been checked, or needs no check.
  bool is_known(const Variant& variant) const;
  // Why it does not serve; empty: it does.
  std::string why_not(const Variant& variant, cudaStream_t stream);

  // From now on it does not serve; a warning says so.
  void refuse(const Variant& variant, const std::string& why);

  // Where a variant's kernels tell that a wait gave up, and what one has told, which is forgotten.
  GaveUp* told(const Variant& variant, bool backward) const;
  std::string take_told(const Variant& variant) const;

  // Whether `theirs` serves a call faster than `ours`, timed at the first question of each key. No
  // where `theirs` fails.
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
  // Throws where it cannot be run now, or stops the device; then so does every later question.
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

// What a call takes: the kernel that is chosen or, where that does not serve, torch's operator if
// that can, else the step kernels. A kernel that the user forces is taken as it is.
Choice allowed_choice(const Problem& problem, const Context& context, bool torch_can_serve);

}  // namespace fastrnn::cuda
