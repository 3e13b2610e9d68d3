// Where a row of a step lies, and which row of which step comes before and after it.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fastrnn::cpu {
namespace {

FASTRNN_INLINE int64_t original_row(const Steps& steps, int64_t i) {
  return steps.order ? steps.order[i] : i;
}

template <typename T>
FASTRNN_INLINE T* row_of(const Sequence& x, const Steps& steps, int64_t t, int64_t i) {
  T* data = static_cast<T*>(x.data);
  if (steps.start) return data + (steps.start[t] + i) * x.row_stride;
  return data + t * x.step_stride + original_row(steps, i) * x.row_stride;
}

FASTRNN_INLINE int64_t active_rows(const Steps& steps, int64_t t) {
  return steps.active ? steps.active[t] : steps.batch;
}

// The walk of one direction over the steps: which state a row comes from and which it goes to. t is
// a step's time, s the number of steps walked before it.
struct Walk {
  const Steps& steps;
  bool reverse;

  // The distance from a row of x, not packed, to the same row at the next step walked.
  int64_t stride(const Sequence& x) const { return reverse ? -x.step_stride : x.step_stride; }
  int64_t time(int64_t s) const { return reverse ? steps.seq_len - 1 - s : s; }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
  bool present(int64_t t, int64_t i) const {
    return t >= 0 && t < steps.seq_len && i < active_rows(steps, t);
  }
  // Whether row i's sequence begins anew between step t and its neighbour in time: reset marks the
  // later of the two.
  bool cut(int64_t t, int64_t neighbour, int64_t i) const {
    if (!steps.reset) return false;
    const int64_t later = t > neighbour ? t : neighbour, row = original_row(steps, i);
    return steps.reset[later * steps.reset_step_stride + row * steps.reset_row_stride];
  }
  // What h_prev of row i at step t is: the state before, if the row continues; zero, if it begins
  // anew; else hx.
  bool continues(int64_t t, int64_t i) const {
    return present(before(t), i) && !cut(t, before(t), i);
  }
  bool begins_anew(int64_t t, int64_t i) const {
    return present(before(t), i) && cut(t, before(t), i);
  }
  // Whether row i's state at step t is the h_prev of the next step.
  bool goes_on(int64_t t, int64_t i) const { return present(after(t), i) && !cut(t, after(t), i); }
};

}  // namespace
}  // namespace fastrnn::cpu
