// A call from start to end: weights are packed, and a team of threads runs layer after layer, each
// member a share of the rows or of the columns.
#include "cpu/stack.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <memory>
#include <type_traits>

#if defined(__linux__)
#define FASTRNN_LIBGOMP
// torch's threads on Linux are those of libgomp, and torch.set_num_threads sets how many. A
// compiler may have an OpenMP of its own, so no pragmas: these are what GCC makes of them.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_max_threads();
int omp_get_num_threads();
int omp_get_thread_num();
}
#endif

namespace fastrnn::cpu {
namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

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

struct Team {
  int index;
  int size;
  void wait() const {
#if defined(FASTRNN_LIBGOMP)
    if (size > 1) GOMP_barrier();
#endif
  }
  // This member's share of n things.
  int64_t begin(int64_t n) const { return n * index / size; }
  int64_t end(int64_t n) const { return n * (index + 1) / size; }
};

// The size of the pool stays what torch set, and fewer threads may come.
int most_members(int threads) {
#if defined(FASTRNN_LIBGOMP)
  if (threads > 1) return omp_get_max_threads();
#endif
  (void)threads;
  return 1;
}

// The members compute in the caller's floating-point environment: torch.set_flush_denormal, say, is
// a matter of one thread.
template <typename F>
void in_parallel(int threads, const F& body) {
#if defined(FASTRNN_LIBGOMP)
  if (threads > 1) {
    struct Work {
      const F& body;
      std::fenv_t callers;

      static void run(void* work) noexcept {
        const Work& w = *static_cast<const Work*>(work);
        std::fenv_t own;
        std::fegetenv(&own);
        std::fesetenv(&w.callers);
        w.body(Team{omp_get_thread_num(), omp_get_num_threads()});
        std::fesetenv(&own);
      }
    };
    Work work{body, {}};
    std::fegetenv(&work.callers);
    GOMP_parallel(Work::run, &work, /*threads: all*/ 0, /*flags=*/0);
    return;
  }
#else
  (void)threads;
#endif
  body(Team{0, 1});
}

int64_t valid_rows(const Steps& s) {
  if (!s.active) return s.seq_len * s.batch;
  int64_t rows = 0;
  for (int64_t t = 0; t < s.seq_len; ++t) rows += s.active[t];
  return rows;
}

int64_t total_rows(const Steps& s) {
  return s.start ? s.start[s.seq_len - 1] + s.active[s.seq_len - 1] : s.seq_len * s.batch;
}

// The stack's layers as an index of layer and direction: which weights, where their input and
// output stand.
class Places {
 public:
  explicit Places(const Stack& s)
      : s_(s),
        rows_(total_rows(s.steps)),
        D_(s.num_directions),
        H_(s.hidden_size),
        bytes_(storage_bytes(s.dtype)) {}

  int64_t rows() const { return rows_; }
  int64_t directions() const { return D_; }
  int64_t count() const { return s_.num_layers * D_; }
  int64_t features(int64_t layer) const { return layer == 0 ? s_.input_size : D_ * H_; }
  int64_t layer(int64_t index) const { return index / D_; }
  int64_t first_of_layer(int64_t index) const { return layer(index) * D_; }
  int64_t per_index() const { return s_.has_biases ? 4 : 2; }
  const void* weight(int64_t index, int k) const { return s_.weights[index * per_index() + k]; }
  const void* bias(int64_t index, int k) const {
    return s_.has_biases ? weight(index, 2 + k) : nullptr;
  }

  // Columns of direction d of a sequence of D*H features.
  Sequence direction(Sequence x, int64_t d, int64_t element_bytes) const {
    if (x.data) x.data = static_cast<char*>(x.data) + d * H_ * element_bytes;
    return x;
  }
  // A sequence of all rows with these features, contiguous.
  Sequence dense(const void* data, int64_t features) const {
    return {const_cast<void*>(data), s_.steps.batch * features, features};
  }
  Sequence layer_of(const void* stacked, int64_t layer) const {  // of [L, rows, D*H]
    return dense(
        stacked ? static_cast<const char*>(stacked) + layer * rows_ * D_ * H_ * bytes_ : nullptr,
        D_ * H_);
  }
  Sequence mask_of_input(int64_t layer) const {
    return layer == 0 ? Sequence{} : layer_of(s_.dropout_mask, layer - 1);
  }
  const void* hx(int64_t index) const {
    return s_.hx ? static_cast<const char*>(s_.hx) + index * s_.hx_layer_stride * bytes_ : nullptr;
  }
  // Slice `index` of [L*D, B, H] contiguous.
  template <typename T>
  T* state(T* data, int64_t index) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return data ? static_cast<Byte*>(data) + index * s_.steps.batch * H_ * bytes_ : nullptr;
  }

 private:
  const Stack& s_;
  int64_t rows_, D_, H_, bytes_;
};

int64_t largest_features(const Stack& s) {
  const int64_t inner = s.num_layers > 1 ? s.num_directions * s.hidden_size : 0;
  return inner > s.input_size ? inner : s.input_size;
}

// Packed weights of more bytes than this are packed a layer at a time, in one place: the waits cost
// little beside the packing.
constexpr int64_t kPackedTogether = 8 << 20;

// The weights of a stack as its kernels want them: packed, or with few rows as they came; and the
// sums of the biases.
class Weights {
 public:
  // Forward: the columns are hidden units. Backward: w_hh and w_ih as they stand, to multiply
  // grad_pre with.
  Weights(const Stack& s, const TypedKernels& kernels, Form form, bool forward)
      : places_(s),
        kernels_(kernels),
        forward_(forward),
        packed_(form != Form::kAsTheyCame),
        H_(s.hidden_size),
        bytes_(accumulator_bytes(s.dtype)) {
    size_ = bytes_of(0, places_.count());
    together_ = size_ <= kPackedTogether;
    if (together_) return;
    // Of the layers above the lowest, all are alike.
    const int64_t D = s.num_directions, last = places_.count() - D;
    size_ = std::max(bytes_of(0, D), bytes_of(last, last + D));
  }
  int64_t bytes() const { return size_; }

  // False once a w_hh that was packed holds NaN or infinity, which make NaN of a state of zero.
  bool finite() const { return finite_.load(std::memory_order_relaxed); }

  // Every member packs its share of what a layer's tasks read: at the first layer that is walked
  // all layers, or one layer in the place of another.
  void pack(char* memory, const Team& team, int64_t layer, bool first) {
    if (together_ && !first) return;
    if (!first) team.wait();  // for all that read the layer before
    const int64_t D = places_.directions(), begin = together_ ? 0 : layer * D;
    const int64_t end = together_ ? places_.count() : begin + D;
    for (int64_t i = begin; i < end; ++i) {
      for (int k = 0; k < 2 && packed_; ++k) {
        const int64_t in = k == 0 ? features(i) : H_;
        const int64_t depth = forward_ ? in : H_, columns = forward_ ? H_ : in;
        const bool finite = kernels_.pack(memory, places_.weight(i, k), depth, columns, forward_,
                                          team.index, team.size);
        if (k == 1 && !finite) finite_.store(false, std::memory_order_relaxed);
        memory += size(i, k);
      }
      if (forward_ && team.index == 0)
        kernels_.add_biases(memory, places_.bias(i, 0), places_.bias(i, 1), H_);
      memory += size(i, 2);
    }
    team.wait();
  }
  const void* w_ih(const char* memory, int64_t index) const {
    return packed_ ? at(memory, index, 0) : places_.weight(index, 0);
  }
  const void* w_hh(const char* memory, int64_t index) const {
    return packed_ ? at(memory, index, 1) : places_.weight(index, 1);
  }
  const void* bias(const char* memory, int64_t index) const { return at(memory, index, 2); }

 private:
  int64_t features(int64_t index) const { return places_.features(places_.layer(index)); }
  int64_t size(int64_t index, int k) const {  // of w_ih, w_hh, bias in memory
    if (k < 2 && !packed_) return 0;
    if (k == 2) return forward_ ? aligned(padded(H_) * bytes_) : 0;
    const int64_t in = k == 0 ? features(index) : H_;
    return aligned((forward_ ? in * padded(H_) : H_ * padded(in)) * bytes_);
  }
  int64_t bytes_of(int64_t begin, int64_t end) const {
    int64_t sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += size(i, 0) + size(i, 1) + size(i, 2);
    return sum;
  }
  const char* at(const char* memory, int64_t index, int k) const {
    memory += bytes_of(together_ ? 0 : places_.first_of_layer(index), index);
    for (int j = 0; j < k; ++j) memory += size(index, j);
    return memory;
  }

  Places places_;
  const TypedKernels& kernels_;
  bool forward_, packed_, together_;
  int64_t H_, bytes_, size_ = 0;
  std::atomic<bool> finite_{true};
};

// What a member of the team works on.
struct Work {
  int64_t row_begin, row_end;
  Share columns;

  Work(const Plan& plan, const Steps& steps, const Team& team) {
    const Part part = choose_part(plan, steps, team.index, team.size);
    row_begin = part.row_begin;
    row_end = part.row_end;
    columns = {part.column_part, part.column_parts,
               [](const void* t) { static_cast<const Team*>(t)->wait(); }, &team};
  }
};

}  // namespace

Problem problem_of(const Stack& s, bool backward) {
  const Steps& steps = s.steps;
  return {.dtype = s.dtype,
          .backward = backward,
          .seq_len = steps.seq_len,
          .batch = steps.batch,
          .input_size = s.input_size,
          .hidden_size = s.hidden_size,
          .num_layers = s.num_layers,
          .num_directions = s.num_directions,
          .rows = valid_rows(steps),
          .first_rows = steps.seq_len > 0 && steps.active ? steps.active[0] : steps.batch,
          .packed = steps.start != nullptr};
}

void run_forward(const Forward& call, const Kernels& kernels, const Plan& plan) {
  const Stack& s = call.stack;
  const TypedKernels& typed = kernels_for(kernels, s.dtype);
  const Places places(s);
  const int64_t L = s.num_layers, D = s.num_directions, H = s.hidden_size,
                bytes = storage_bytes(s.dtype);
  Weights weights(s, typed, plan.form, true);

  // Between the layers the output goes to `saved`, or where none is wanted to two buffers in turn.
  const int64_t between = call.saved || L == 1 ? 0 : aligned(places.rows() * D * H * bytes);
  const int64_t scratch = aligned(task_scratch_bytes(s.dtype, largest_features(s), H));
  const int members = most_members(plan.threads);
  Workspace workspace(weights.bytes() + 2 * between + members * scratch);
  char* packed = workspace.take(weights.bytes());
  char* buffers[2] = {workspace.take(between), workspace.take(between)};
  char* scratches = workspace.take(members * scratch);

  in_parallel(plan.threads, [&](const Team& team) {
    char* own_scratch = scratches + team.index * scratch;
    const Work work(plan, s.steps, team);
    Sequence input = s.input;
    for (int64_t layer = 0; layer < L; ++layer) {
      weights.pack(packed, team, layer, layer == 0);
      Sequence output = layer == L - 1 ? call.output : places.dense(buffers[layer & 1], D * H);
      Sequence copy{};
      if (call.saved) {
        if (layer == L - 1) copy = call.output;
        output = places.layer_of(call.saved, layer);
      }
      for (int64_t d = 0; d < D; ++d) {
        const int64_t index = layer * D + d;
        const ForwardTask task{.steps = &s.steps,
                               .plan = &plan,
                               .above = layer > 0,
                               .share = work.columns,
                               .reverse = d == 1,
                               .nonlinearity = s.nonlinearity,
                               .input_size = places.features(layer),
                               .hidden_size = H,
                               .input = input,
                               .input_mask = places.mask_of_input(layer),
                               .hx = places.hx(index),
                               .hx_row_stride = s.hx_row_stride,
                               .w_ih = weights.w_ih(packed, index),
                               .w_hh = weights.w_hh(packed, index),
                               .skips_zeros = !s.hx && weights.finite(),
                               .bias = weights.bias(packed, index),
                               .output = places.direction(output, d, bytes),
                               .copy = places.direction(copy, d, bytes),
                               .hn = places.state(call.hn, index)};
        typed.forward(task, work.row_begin, work.row_end, own_scratch);
      }
      input = output;
    }
  });
}

void run_backward(const Backward& call, const Kernels& kernels, const Plan& plan) {
  const Stack& s = call.stack;
  const TypedKernels& typed = kernels_for(kernels, s.dtype);
  const Places places(s);
  const int64_t L = s.num_layers, D = s.num_directions, H = s.hidden_size;
  const int64_t bytes = storage_bytes(s.dtype), wide = accumulator_bytes(s.dtype);
  Weights weights(s, typed, plan.form, false);

  // A layer's grad_pre, and the gradient that it hands down.
  const int64_t pre_bytes = plan.form == Form::kPackedPairs ? bytes : wide;
  const int64_t pre = aligned(places.rows() * D * H * pre_bytes);
  const int64_t between = L > 1 ? aligned(places.rows() * D * H * bytes) : 0;
  // Sums of the weight gradients where storage is narrower; a member has its own rows of them.
  const int64_t features = largest_features(s), sums = bytes < wide ? H * wide : 0;
  const int64_t sums_w_ih = aligned(sums * features), sums_w_hh = aligned(sums * H);
  const int64_t scratch = aligned(task_scratch_bytes(s.dtype, features, H));
  const int members = most_members(plan.threads);
  Workspace workspace(weights.bytes() + pre + between + sums_w_ih + sums_w_hh + members * scratch);
  char* packed = workspace.take(weights.bytes());
  const Sequence grad_pre = places.dense(workspace.take(pre), D * H);
  char* handed_down = workspace.take(between);
  char* sums_of_w_ih = workspace.take(sums_w_ih);
  char* sums_of_w_hh = workspace.take(sums_w_hh);
  char* scratches = workspace.take(members * scratch);

  in_parallel(plan.threads, [&](const Team& team) {
    char* own_scratch = scratches + team.index * scratch;
    const Work work(plan, s.steps, team);
    for (int64_t layer = L - 1; layer >= 0; --layer) {
      const bool top = layer == L - 1;
      weights.pack(packed, team, layer, top);
      const Sequence grad_output = top ? call.grad_output : places.dense(handed_down, D * H);
      const Sequence state = places.layer_of(call.saved, layer);
      const Sequence input = layer == 0 ? s.input : places.layer_of(call.saved, layer - 1);
      const Sequence mask = places.mask_of_input(layer);
      InputGradTask below{};
      below.steps = &s.steps;
      below.plan = &plan;
      below.above = layer > 0;
      below.share = work.columns;
      below.num_directions = static_cast<int>(D);
      below.input_size = places.features(layer);
      below.hidden_size = H;
      below.input_mask = mask;
      below.grad_input = layer == 0 ? call.grad_input : places.dense(handed_down, D * H);
      for (int64_t d = 0; d < D; ++d) {
        const int64_t index = layer * D + d;
        below.grad_pre[d] = places.direction(grad_pre, d, pre_bytes);
        below.w_ih[d] = weights.w_ih(packed, index);
        const BackwardTask task{.steps = &s.steps,
                                .plan = &plan,
                                .share = work.columns,
                                .reverse = d == 1,
                                .nonlinearity = s.nonlinearity,
                                .hidden_size = H,
                                .state = places.direction(state, d, bytes),
                                .w_hh = weights.w_hh(packed, index),
                                .grad_output = places.direction(grad_output, d, bytes),
                                .grad_hn = places.state(call.grad_hn, index),
                                .grad_pre = below.grad_pre[d],
                                .grad_hx = places.state(call.grad_hx, index)};
        typed.backward(task, work.row_begin, work.row_end, own_scratch);
      }
      if (below.grad_input.data) typed.input_grad(below, work.row_begin, work.row_end, own_scratch);
      if (call.grad_weights || plan.share_columns) team.wait();
      if (!call.grad_weights) continue;
      for (int64_t d = 0; d < D; ++d) {
        const int64_t index = layer * D + d;
        void* const* grads = call.grad_weights + index * places.per_index();
        const WeightGradTask task{.steps = &s.steps,
                                  .plan = &plan,
                                  .reverse = d == 1,
                                  .input_size = places.features(layer),
                                  .hidden_size = H,
                                  .grad_pre = below.grad_pre[d],
                                  .state = places.direction(state, d, bytes),
                                  .hx = places.hx(index),
                                  .hx_row_stride = s.hx_row_stride,
                                  .input = input,
                                  .input_mask = mask,
                                  .sums_w_ih = sums_of_w_ih,
                                  .sums_w_hh = sums_of_w_hh,
                                  .grad_w_ih = grads[0],
                                  .grad_w_hh = grads[1],
                                  .grad_b_ih = s.has_biases ? grads[2] : nullptr,
                                  .grad_b_hh = s.has_biases ? grads[3] : nullptr};
        typed.weight_grad(task, team.begin(H), team.end(H), own_scratch);
      }
      if (layer > 0) team.wait();  // for all that read grad_pre
    }
  });
}

}  // namespace fastrnn::cpu
