// Whether a kernel computes what it should on this GPU: the one routine behind the guard (guard.h),
// `python -m fastrnn check` and benchmarks/gpu/kernels.cpp. It needs no torch.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/recurrence.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

const char* name_of(Dtype dtype);

// A configuration and one of the dtypes that it takes.
struct Variant {
  Choice choice;
  Dtype dtype;

  bool tf32() const;  // whether it rounds float32 factors
};

// What can run on the device, the step kernels included.
std::vector<Variant> variants(const Device& device);

// Which rows a trial has.
enum class Lengths : int {
  kWhole,   // all have every step
  kPacked,  // packed data, the longest first
  kPadded,  // of any length, 0 too
  kMarks    // likewise, sorted, and with resets
};

struct Trial {
  const char* name;
  Lengths lengths;
  Nonlinearity nonlinearity;
  bool bare = false;  // one row and direction, few units, and nothing that may be left out
  bool full = false;  // three groups, every unit, grad_pre in the place of grad_output
};
inline constexpr std::array<Trial, 6> kTrials{{
    {"whole", Lengths::kWhole, Nonlinearity::kTanh},
    {"packed", Lengths::kPacked, Nonlinearity::kTanh},
    {"lengths", Lengths::kPadded, Nonlinearity::kRelu},
    {"marks", Lengths::kMarks, Nonlinearity::kTanh},
    {"bare", Lengths::kWhole, Nonlinearity::kRelu, true, false},
    {"full", Lengths::kWhole, Nonlinearity::kTanh, false, true},
}};

struct Verdict {
  cudaError_t error = cudaSuccess;  // of a launch, or of the device
  bool timed_out = false;           // the stream had not ended after kCheckSeconds
  GaveUp gave_up{};                 // where a wait between blocks did
  double worst = 0;                 // error, relative to the right value or one
  double allowed = 0;
  std::string where;                     // of the worst: "grad_hx[1], t 0, b 3, j 17"
  int64_t compared = 0, to_compare = 0;  // numbers

  bool is_right() const {
    return error == cudaSuccess && !timed_out && !gave_up.yes && worst <= allowed &&
           compared == to_compare;
  }
  std::string fault() const;  // what is wrong, in words
};

#if defined(FASTRNN_ON_CPU)
constexpr int kCheckSeconds = 1;
#else
constexpr int kCheckSeconds = 10;
#endif

// Bytes of device memory that a check needs.
int64_t check_bytes(const Variant& variant);

// Runs forward and backward on random numbers, and compares each step with what plain products in
// double make of the step before, as the kernel stored it; so errors do not add up, and every
// element counts. With the step kernels it also checks those that serve all calls. Waits for the
// stream.
Verdict check_variant(const Variant& variant, const Trial& trial, void* workspace,
                      cudaStream_t stream);

}  // namespace fastrnn::cuda
