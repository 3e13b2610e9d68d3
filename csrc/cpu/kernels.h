// What an instruction set's kernels take and offer. A task is one layer and direction of a stack,
// for the rows or hidden units that one thread owns; stack.cpp cuts a call into tasks.
#pragma once

#include <cstdint>

#include "cpu/choose.h"
#include "rnn.h"

namespace fastrnn::cpu {

// Matrices are packed into panels of a few vectors of columns, zero-padded to whole vectors. An
// element is of the accumulation type: double for double, float for the others.
static inline int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

static inline int64_t accumulator_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 4; }
static inline int64_t storage_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// Which rows there are at each step. Row i of step t of a sequence tensor x lies at
//   padded: x + t * step_stride + row(i) * row_stride,  row(i) = order ? order[i] : i
//   packed: x + (start[t] + i) * row_stride
// Rows are sorted by length, longest first: the rows of step t are 0 .. active[t]-1, and active
// does not increase.
struct Steps {
  int64_t seq_len;
  int64_t batch;
  const int64_t* start;   // [T], or null: padded
  const int64_t* active;  // [T], or null: every row has every step
  const int64_t* order;   // [B], or null: already sorted
  const bool* reset;      // true where a new sequence begins: h[t-1] is zero; null: nowhere.
                          // At the first step walked, hx decides
  int64_t reset_step_stride;
  int64_t reset_row_stride;
};

// How a task's columns are shared: by default one thread has all of them. Otherwise each step ends
// with a wait for the other parts.
struct Share {
  int part = 0;
  int parts = 1;
  void (*wait)(const void* team) = nullptr;
  const void* team = nullptr;
};

struct ForwardTask {
  const Steps* steps;
  const Plan* plan;
  bool above;  // not the lowest layer: which of two elements of the plan's arrays
  Share share;
  bool reverse;
  Nonlinearity nonlinearity;
  int64_t input_size;
  int64_t hidden_size;
  Sequence input;       // storage type
  Sequence input_mask;  // storage type; data null: none
  const void* hx;       // storage type, [B, H]; null: zeros
  int64_t hx_row_stride;
  const void* w_ih;
  const void* w_hh;
  bool skips_zeros;  // the product of w_hh with a first state that is zero
  const void* bias;  // accumulation type, padded
  Sequence output;   // storage type
  Sequence copy;     // storage type; data null: none
  void* hn;          // storage type, [B, H] contiguous
  Sequence gates;    // storage type: more of igates, from outside; data null: none
  // Of a leaky layer:
  Leak leak;
  const void* alpha;     // accumulation type, [H] padded
  const void* leaky_hx;  // as hx: the state that leaks, where hx is f of it (current form)
  Sequence kept;         // storage type; data null: not wanted
};

struct BackwardTask {
  const Steps* steps;
  const Plan* plan;
  Share share;
  bool reverse;
  Nonlinearity nonlinearity;
  int64_t hidden_size;
  Sequence state;  // storage type: the saved output
  const void* w_hh;
  Sequence grad_output;  // storage type; data null: zeros
  const void* grad_hn;   // storage type, [B, H] contiguous; null: zeros
  Sequence grad_pre;     // accumulation type, or 16 bits with kPackedPairs
  void* grad_hx;         // storage type, [B, H] contiguous; null: not wanted
  Sequence grad_layer;   // storage type: more of the output's gradient; data null: none
  Sequence grad_gates;   // storage type: grad_pre for the caller; data null: not wanted
  // Of a leaky layer:
  Leak leak;
  const void* alpha;  // accumulation type, [H] padded
  Sequence kept;      // storage type; data null: not needed
  const void* hx;     // storage type, [B, H]: f(hx), in the current form; null: zeros
  int64_t hx_row_stride;
  Sequence grad_state;  // accumulation type; data null: not wanted
};

struct AlphaGradTask {
  const Steps* steps;
  bool reverse;
  Leak leak;
  int64_t input_size;
  int64_t hidden_size;
  Sequence grad_state;  // accumulation type
  Sequence kept;        // storage type
  Sequence state;       // storage type
  const void* hx;       // storage type, [B, H]; null: zeros
  int64_t hx_row_stride;
  void* grad_alpha;  // accumulation type, [H]
};

struct InputGradTask {
  const Steps* steps;
  const Plan* plan;
  bool above;
  Share share;
  int num_directions;
  int64_t input_size;
  int64_t hidden_size;
  Sequence grad_pre[2];
  const void* w_ih[2];
  Sequence grad_input;  // storage type
  Sequence input_mask;
};

struct WeightGradTask {
  const Steps* steps;
  const Plan* plan;
  bool reverse;
  int64_t input_size;
  int64_t hidden_size;
  Sequence grad_pre;
  Sequence state;
  const void* hx;
  int64_t hx_row_stride;
  Sequence input;
  Sequence input_mask;
  void* sums_w_ih;  // accumulation type, where storage is narrower: like grad_w_ih and grad_w_hh
  void* sums_w_hh;
  void* grad_w_ih;  // storage type
  void* grad_w_hh;
  void* grad_b_ih;  // null: no biases
  void* grad_b_hh;
};

// The kernels of one dtype. Rows and hidden units are half-open ranges; scratch is aligned to 64
// bytes.
struct TypedKernels {
  KernelTraits traits;
  // dst = every parts-th panel, from `part` on, of the [depth, columns] matrix that lies at src, or
  // is transposed there. Returns whether these panels are finite if it is transposed, else true.
  bool (*pack)(void* dst, const void* src, int64_t depth, int64_t columns, bool transposed,
               int part, int parts);
  void (*add_biases)(void* dst, const void* b_ih, const void* b_hh, int64_t size);
  // dst = f(src), both of the storage type.
  void (*activate)(void* dst, const void* src, int64_t size, Nonlinearity f);
  void (*forward)(const ForwardTask&, int64_t row_begin, int64_t row_end, void* scratch);
  void (*backward)(const BackwardTask&, int64_t row_begin, int64_t row_end, void* scratch);
  void (*input_grad)(const InputGradTask&, int64_t row_begin, int64_t row_end, void* scratch);
  void (*weight_grad)(const WeightGradTask&, int64_t unit_begin, int64_t unit_end, void* scratch);
  void (*alpha_grad)(const AlphaGradTask&, int64_t unit_begin, int64_t unit_end, void* scratch);
};

struct Kernels {
  const char* name;
  TypedKernels typed[kDtypes];  // by Dtype
};

static inline const TypedKernels& kernels_for(const Kernels& kernels, Dtype dtype) {
  return kernels.typed[static_cast<int>(dtype)];
}

// The weight gradients read grad_pre by columns, from a copy [depth, units] that is cut into chunks
// of kUnitChunk units: the rows of a chunk lie on few pages, and not at a power of two from each
// other, where they would fall into a few sets of the nearest cache.
static inline int64_t unit_chunks(int64_t units) { return (units + kUnitChunk - 1) / kUnitChunk; }
// The distance between the rows of a chunk.
static inline int64_t unit_stride(int64_t units) {
  return units < kUnitChunk ? (padded(units) / 16 | 1) * 16 : kUnitChunk + 16;
}

// Bytes of scratch of any one task of these sizes: the parts that the blocks of forward.h,
// backward.h and grads.h take from it, with room for their padding. Calls of the operator
// rnn_extended need more.
static inline int64_t task_scratch_bytes(Dtype dtype, int64_t input_size, int64_t hidden_size,
                                         bool extended) {
  const int64_t in = padded(input_size), hidden = padded(hidden_size);
  const int64_t rows = kBlockRows * (in + (extended ? 9 : 4) * hidden) + 2 * hidden;
  const int64_t units =
      unit_chunks(hidden_size) * (hidden < kUnitChunk ? hidden + 16 : unit_stride(kUnitChunk));
  const int64_t grads = kDepthBlock * (in + hidden + units + 64) + 6 * hidden;
  return ((rows > grads ? rows : grads) + 256) * accumulator_bytes(dtype);
}

const Kernels& baseline_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const TypedKernels& avx512_bf16_kernels();  // for bfloat16, by dot products of pairs

}  // namespace fastrnn::cpu
