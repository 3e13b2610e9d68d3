// Every choice of a call on the CPU, and every number that was tuned: which instruction set, how
// many threads and what each works on, how the kernels get the weights, what they join and fetch
// ahead. No kernel runs here.
#pragma once

#include "rnn.h"

namespace fastrnn::cpu {

struct Kernels;
struct Steps;

// How weight matrices are handed to a kernel.
enum class Form {
  kAsTheyCame,
  kPacked,       // in panels of the accumulation type
  kPackedPairs,  // in panels of pairs of 16-bit numbers, for instructions that multiply pairs;
                 // grad_pre is stored in 16 bits
};

// What the choices need to know of the kernels of a dtype.
struct KernelTraits {
  Form packed_form;     // kPacked or kPackedPairs
  int64_t panel_bytes;  // the width of a panel: its vectors of columns
  int64_t vector_bytes;
};

struct Problem {
  Dtype dtype;
  bool backward;
  int64_t seq_len;
  int64_t batch;
  int64_t input_size;
  int64_t hidden_size;
  int64_t num_layers;
  int64_t num_directions;
  int64_t rows;          // of all steps, those beyond a row's length not counted
  int64_t first_rows;    // of the first step, which has the most
  bool packed;           // the sequence: the rows of a step follow those of the step before
  bool may_pack = true;  // weights; false: there is no memory for a copy
};

constexpr int64_t kNever = INT64_MAX;

// Of arrays with two elements the first is for the lowest layer, the second for those above. The
// order of sums depends on form, split and opposed, and on fused_rows if weights are as they came
// or sums are split; in those cases, none of these may depend on the number of threads.
struct Plan {
  int threads;
  bool share_columns;     // of each step, else threads share rows; not for types of 16 bits
  bool share_input_grad;  // if columns are shared: threads share the rows of grad_input
  Form form;              // of the weights
  bool split;             // sum even and odd k apart
  bool opposed;           // a step that walks panels backwards walks k forwards
  int64_t fused_rows[2];  // from so many rows of a block, steps include the input projection
  bool fetch_rows;        // of the next step, meanwhile; not for packed sequences
  bool fetch_w_ih[2];     // ahead of their use
  bool fetch_w_hh;
};

// `threads` are available; the plan may use fewer.
Plan choose(const Problem& problem, const KernelTraits& kernels, int threads);

// What one of `size` threads works on: rows, and of each product one of `column_parts` parts.
struct Part {
  int64_t row_begin, row_end;
  int column_part, column_parts;
};
Part choose_part(const Plan& plan, const Steps& steps, int index, int size);

// The multiply-adds of a step from which torch's own operator is faster.
int64_t torch_step_work(const KernelTraits& kernels);

// The kernels of a name: "baseline" ("neon"), "avx2", "avx512" or "avx512_bf16"; null if the
// processor lacks them.
const Kernels* find_kernels(const char* name);

// The best that the processor has, and torch's own ceiling (ATEN_CPU_CAPABILITY) allows.
const Kernels& select_kernels(const char* capability);

// What kernels know when they are compiled.

constexpr int64_t kBlockRows = 96;           // rows that run through all steps together
constexpr int64_t kDepthBlock = 256;         // rows of a block of the weight gradients' reduction
constexpr int64_t kUnitChunk = 256;          // hidden units of a chunk of its copy of grad_pre
constexpr int64_t kNearestBytes = 32 << 10;  // of the nearest cache
constexpr int64_t kAheadBytes = 16 << 10;    // how far ahead panels of a large matrix are fetched

}  // namespace fastrnn::cpu
