// The memory that a call works in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastrnn::cpu {

// What run_forward and run_backward throw if there is no memory for them to work in.
struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(int64_t bytes) : bytes(bytes) {}
  int64_t bytes;
};

constexpr int64_t kAlignment = 64;

inline int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Scratch memory of a call, taken before threads start: an exception must not leave a parallel
// region. Up to kKeep bytes stay with the calling thread for its next call.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    thread_local Block kept;
    thread_local int64_t size = 0;
    if (bytes > kKeep) {
      own_ = allocate(bytes);
      next_ = own_.get();
      return;
    }
    if (bytes > size) {
      size = 0;
      kept.reset();
      kept = allocate(bytes);
      size = bytes;
    }
    next_ = kept.get();
  }

  char* take(int64_t bytes) {
    char* p = next_;
    next_ += aligned(bytes);
    return p;
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  using Block = std::unique_ptr<char, Free>;

  static Block allocate(int64_t bytes) {
    void* p = std::aligned_alloc(kAlignment, aligned(bytes));
    if (!p) throw OutOfMemory(aligned(bytes));
    return Block(static_cast<char*>(p));
  }

  static constexpr int64_t kKeep = int64_t{64} << 20;
  Block own_;
  char* next_;
};

}  // namespace fastrnn::cpu
