// Whether a kernel computes what it should on the GPU that is there: the one routine behind the
// guard (guard.h), `python -m fastrnn check` and benchmarks/gpu/kernels.cpp. It needs no torch.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/recurrence.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

// A configuration and one of the dtypes that it takes.
struct Variant {
  Choice choice;
  Dtype dtype;

  bool tf32() const;  // whether it rounds float32 factors
};

// What can run on the device, the step kernels included.
std::vector<Variant> variants(const Device& device);

// How the rows of a check differ.
enum class Lengths : int {
  kWhole,   // they do not
  kPacked,  // packed data, the longest first
  kPadded,  // of any length, 0 too
  kMarks    // likewise, sorted, and with resets
};
inline constexpr std::array kAllLengths{Lengths::kWhole, Lengths::kPacked, Lengths::kPadded,
                                        Lengths::kMarks};
const char* name_of(Lengths lengths);  // "whole", "packed", "lengths", "marks"

struct Verdict {
  cudaError_t error = cudaSuccess;  // of a launch, or of the device
  bool timed_out = false;           // the stream had not ended after kCheckSeconds
  GaveUp gave_up{};                 // where a wait between blocks did
  double worst = 0;                 // error, relative to the right value or one
  double allowed = 0;
  std::string where;  // of the worst: "grad_hx[1], t 0, b 3, j 17"

  bool is_right() const {
    return error == cudaSuccess && !timed_out && !gave_up.yes && worst <= allowed;
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

// Runs forward and backward, two directions of two groups of rows, on random numbers, and compares
// each step with what follows from the step before as the kernel has stored it, by plain products
// in double; so errors do not add up, and every element counts. Waits for the stream.
Verdict check_variant(const Variant& variant, Lengths lengths, void* workspace,
                      cudaStream_t stream);

}  // namespace fastrnn::cuda
