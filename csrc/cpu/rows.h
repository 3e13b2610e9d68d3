// What a task works on: its scratch memory, and rows as products take them.
#pragma once

#include "cpu/run_product.h"
#include "cpu/walk.h"

namespace fastrnn::cpu {
namespace {

template <typename S>
constexpr bool kNarrow = sizeof(S) == 2;  // storage narrower than its accumulation type

FASTRNN_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// The scratch memory of a task of these sizes, dealt out from its start.
template <typename C>
class Arena {
 public:
  Arena(void* scratch, int64_t input_size, int64_t hidden_size, bool extended = false)
      : next_(static_cast<C*>(scratch)),
        left_(task_scratch_bytes(kDtype, input_size, hidden_size, extended)) {}
  C* take(int64_t n) {
    C* p = next_;
    next_ += padded(n);
    left_ -= padded(n) * int64_t{sizeof(C)};
    if (left_ < 0) __builtin_trap();  // task_scratch_bytes is wrong: better than a stray write
    return p;
  }
  C* take_zeros(int64_t n) {
    C* zeros = take(n);
    for (int64_t k = 0; k < n; ++k) zeros[k] = 0;
    return zeros;
  }

 private:
  static constexpr Dtype kDtype = sizeof(C) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
  C* next_;
  int64_t left_;
};

// A row in the accumulation type: the row itself if it is stored in that type, else widened into
// the buffer; times the mask, if any.
template <typename S, typename C>
FASTRNN_INLINE const C* widened(const S* row, const S* mask, C* buffer, int64_t n) {
  if constexpr (!kNarrow<S>) {
    if (!mask) return row;
  }
  widen(buffer, row, n);
  for (int64_t k = 0; mask && k < n; ++k) {
    C m;
    widen(&m, mask + k, 1);
    S rounded;  // as the layer below hands it on
    narrow(&rounded, &(m *= buffer[k]), 1);
    widen(buffer + k, &rounded, 1);
  }
  return buffer;
}

// A row as a product takes it: of 16 bits for pairs, else widened. The buffer holds n of the
// accumulation type.
template <typename S, typename C>
FASTRNN_INLINE const void* operand(Layout layout, const S* row, const S* mask, C* buffer,
                                   int64_t n) {
  if (layout != Layout::kPairs) return widened<S, C>(row, mask, buffer, n);
  if (!mask) return row;
  widened<S, C>(row, mask, buffer, n);
  S* rounded = reinterpret_cast<S*>(buffer);
  for (int64_t k = 0; k < n; ++k)
    narrow(rounded + k, buffer + k, 1);  // never ahead of what is read
  return rounded;
}

inline Layout layout_of(Form form, Layout as_they_came) {
  return form == Form::kPacked        ? Layout::kPacked
         : form == Form::kPackedPairs ? Layout::kPairs
                                      : as_they_came;
}

template <typename S>
FASTRNN_INLINE const S* mask_row(const Sequence& mask, const Steps& steps, int64_t t, int64_t i) {
  return mask.data ? row_of<const S>(mask, steps, t, i) : nullptr;
}

FASTRNN_INLINE void wait(const Share& share) {
  if (share.parts > 1) share.wait(share.team);
}

// Rows of a task that run through all steps together; row i of them is the task's row begin + i.
struct Block {
  Walk walk;
  int64_t begin, rows;

  int64_t seq_len() const { return walk.steps.seq_len; }
  // How many of them have a step t.
  int64_t active(int64_t t) const { return clamp(active_rows(walk.steps, t) - begin, 0, rows); }
  int64_t present() const { return seq_len() > 0 ? active(0) : 0; }  // that have any step
  template <typename T>
  T* row(const Sequence& x, int64_t t, int64_t i) const {
    return row_of<T>(x, walk.steps, t, begin + i);
  }
  // As the caller counts rows, whatever their order here.
  int64_t original(int64_t i) const { return original_row(walk.steps, begin + i); }

  bool continues(int64_t t, int64_t i) const { return walk.continues(t, begin + i); }
  bool begins_anew(int64_t t, int64_t i) const { return walk.begins_anew(t, begin + i); }
  bool goes_on(int64_t t, int64_t i) const { return walk.goes_on(t, begin + i); }
  // Of those that are walked.
  bool is_first(int64_t t, int64_t i) const { return !walk.present(walk.before(t), begin + i); }
  bool is_last(int64_t t, int64_t i) const { return !walk.present(walk.after(t), begin + i); }
};

// Alternate the direction of panels, and of k if sums are split, from step to step: what was read
// last is still in cache. By the parity of t, not of s, so that padded and packed sequences sum
// alike.
template <typename C>
FASTRNN_INLINE void turn(Product<C>& step, const Plan& plan, int64_t t) {
  step.back = t & 1;
  step.k_back = step.back != plan.opposed;
}

template <typename Kernel, typename Task>
void for_blocks(const Task& task, int64_t begin, int64_t end, void* scratch) {
  const int64_t blocks = (end - begin + kBlockRows - 1) / kBlockRows;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t rows = (end - begin + blocks - i - 1) / (blocks - i);
    Kernel(task, Block{{*task.steps, task.reverse}, begin, rows}, scratch).run();
    begin += rows;
  }
}

}  // namespace
}  // namespace fastrnn::cpu
