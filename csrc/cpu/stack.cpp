#include "cpu/stack.h"

#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
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
    if (!p) throw std::bad_alloc();
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
#if defined(_OPENMP)
    if (size > 1) {
#pragma omp barrier
    }
#endif
  }
  // This member's share of n things.
  int64_t begin(int64_t n) const { return n * index / size; }
  int64_t end(int64_t n) const { return n * (index + 1) / size; }
};

// Without a num_threads clause: the size of the pool stays what torch set, and fewer threads may
// come.
int most_members(int threads) {
#if defined(_OPENMP)
  if (threads > 1) return omp_get_max_threads();
#endif
  (void)threads;
  return 1;
}

template <typename F>
void in_parallel(int threads, const F& body) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel
    body(Team{omp_get_thread_num(), omp_get_num_threads()});
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

// Number of steps summed over the rows before row i, as if rows were sorted by length.
class Work {
 public:
  explicit Work(const Steps& steps) : steps_(steps) {}
  int64_t before(int64_t rows) const {
    if (!steps_.active) return rows * steps_.seq_len;
    int64_t sum = 0;
    for (int64_t t = 0; t < steps_.seq_len; ++t)
      sum += steps_.active[t] < rows ? steps_.active[t] : rows;
    return sum;
  }
  // The first row at which a fraction index / size of all steps has been dealt.
  int64_t row_at(int index, int size) const {
    if (index == 0) return 0;
    if (index == size) return steps_.batch;
    if (!steps_.active) return steps_.batch * index / size;
    const int64_t target = before(steps_.batch) * index / size;
    int64_t low = 0, high = steps_.batch;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      before(middle) < target ? low = middle + 1 : high = middle;
    }
    return low;
  }

 private:
  const Steps& steps_;
};

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
  int64_t count() const { return s_.num_layers * D_; }
  int64_t features(int64_t layer) const { return layer == 0 ? s_.input_size : D_ * H_; }
  int64_t layer(int64_t index) const { return index / D_; }
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

// Whether packing the weights costs more than it saves: with few rows of all steps, and where a
// single step has rows. A row of the transposed matrix ends in a sum over lanes, which a small one
// does not outweigh. It goes by the rows that there are, for padded and packed calls alike.
bool better_unpacked(const Stack& s, const TypedKernels& kernels, bool forward) {
  constexpr int64_t kLeastSize = 64, kFewRows = 16, kOneStepForward = 40, kOneStepBackward = 96;
  const Steps& steps = s.steps;
  const int64_t rows = valid_rows(steps);
  if (s.hidden_size < kLeastSize) return false;
  if (rows <= kFewRows) return true;
  const bool one_step = rows == (steps.active ? steps.active[0] : steps.batch);
  if (!one_step || kernels.packed_form == Form::kPackedPairs) return false;
  return rows <= (forward ? kOneStepForward : kOneStepBackward);
}

// The weights of a stack as its kernels want them: packed, or with few rows as they came; and the
// sums of the biases.
class Weights {
 public:
  // Forward: the columns are hidden units. Backward: w_hh and w_ih as they stand, to multiply
  // grad_pre with.
  Weights(const Stack& s, const TypedKernels& kernels, bool forward)
      : places_(s),
        kernels_(kernels),
        forward_(forward),
        packed_(!better_unpacked(s, kernels, forward)),
        H_(s.hidden_size),
        bytes_(accumulator_bytes(s.dtype)) {
    for (int64_t i = 0; i < places_.count(); ++i) size_ += size(i, 0) + size(i, 1) + size(i, 2);
  }
  int64_t bytes() const { return size_; }
  Form form() const { return packed_ ? kernels_.packed_form : Form::kAsTheyCame; }

  // Every member packs its share; wait before reading.
  void pack(char* memory, const Team& team) const {
    for (int64_t i = 0; i < places_.count(); ++i) {
      for (int k = 0; k < 2 && packed_; ++k) {
        const int64_t in = k == 0 ? features(i) : H_;
        const int64_t depth = forward_ ? in : H_, columns = forward_ ? H_ : in;
        kernels_.pack(memory, places_.weight(i, k), depth, columns, forward_, team.index,
                      team.size);
        memory += size(i, k);
      }
      if (forward_ && team.index == 0)
        kernels_.add_biases(memory, places_.bias(i, 0), places_.bias(i, 1), H_);
      memory += size(i, 2);
    }
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
  const char* at(const char* memory, int64_t index, int k) const {
    for (int64_t i = 0; i < index; ++i) memory += size(i, 0) + size(i, 1) + size(i, 2);
    for (int j = 0; j < k; ++j) memory += size(index, j);
    return memory;
  }

  Places places_;
  const TypedKernels& kernels_;
  bool forward_, packed_;
  int64_t H_, bytes_, size_ = 0;
};

// Which rows and columns a member of the team works on. Rows need nothing of one another, so they
// are shared out where there are enough: two each, or ten where w_hh is larger than a member's own
// cache and has panels enough for all (tuned on two threads). Else columns are, where a step is
// long enough to pay for the wait at its end. Types of 16 bits share rows only: what a step hands
// on lies in each member's own scratch.
struct Part {
  int64_t begin, end;
  Share columns;

  Part(const Stack& s, const Team& team) {
    constexpr int64_t kLeastStepWork = 250'000;  // multiply-adds
    constexpr int64_t kCachedWeight = 2 << 20;   // bytes
    constexpr int64_t kManyColumns = 128;        // two panels or more
    const Steps& steps = s.steps;
    const int64_t weights = s.hidden_size * s.hidden_size;
    const bool rereads = weights * storage_bytes(s.dtype) >= kCachedWeight &&
                         s.hidden_size >= kManyColumns * team.size;
    if (team.size > 1 && steps.batch < (rereads ? 10 : 2) * team.size &&
        storage_bytes(s.dtype) > 2 && steps.batch * weights >= kLeastStepWork) {
      begin = 0;
      end = steps.batch;
      columns = {team.index, team.size, [](const void* t) { static_cast<const Team*>(t)->wait(); },
                 &team};
    } else {
      const Work work(steps);
      begin = work.row_at(team.index, team.size);
      end = work.row_at(team.index + 1, team.size);
    }
  }
};

}  // namespace

int worthwhile_threads(const Stack& s, int available) {
  constexpr int64_t kLeastWork =
      120'000;  // multiply-adds: below, starting the threads costs more than it saves
  if (available <= 1 || s.steps.seq_len == 0) return 1;
  const int64_t H = s.hidden_size, D = s.num_directions;
  const int64_t per_row = D * H * (s.input_size + H + (s.num_layers - 1) * (D * H + H));
  return total_rows(s.steps) * per_row < kLeastWork ? 1 : available;
}

void run_forward(const Forward& call, const Kernels& kernels, int threads) {
  const Stack& s = call.stack;
  const TypedKernels& typed = kernels.typed[static_cast<int>(s.dtype)];
  const Places places(s);
  const int64_t L = s.num_layers, D = s.num_directions, H = s.hidden_size,
                bytes = storage_bytes(s.dtype);
  const Weights weights(s, typed, true);

  // Between the layers the output goes to `saved`, or where none is wanted to two buffers in turn.
  const int64_t between = call.saved || L == 1 ? 0 : aligned(places.rows() * D * H * bytes);
  const int64_t scratch = aligned(task_scratch_bytes(s.dtype, largest_features(s), H));
  const int members = most_members(threads);
  Workspace workspace(weights.bytes() + 2 * between + members * scratch);
  char* packed = workspace.take(weights.bytes());
  char* buffers[2] = {workspace.take(between), workspace.take(between)};
  char* scratches = workspace.take(members * scratch);

  in_parallel(threads, [&](const Team& team) {
    char* own_scratch = scratches + team.index * scratch;
    weights.pack(packed, team);
    team.wait();
    const Part part(s, team);
    Sequence input = s.input;
    for (int64_t layer = 0; layer < L; ++layer) {
      Sequence output = layer == L - 1 ? call.output : places.dense(buffers[layer & 1], D * H);
      Sequence copy{};
      if (call.saved) {
        if (layer == L - 1) copy = call.output;
        output = places.layer_of(call.saved, layer);
      }
      for (int64_t d = 0; d < D; ++d) {
        const int64_t index = layer * D + d;
        const ForwardTask task{&s.steps,
                               part.columns,
                               d == 1,
                               s.relu,
                               places.features(layer),
                               H,
                               input,
                               places.mask_of_input(layer),
                               places.hx(index),
                               s.hx_row_stride,
                               weights.form(),
                               weights.w_ih(packed, index),
                               weights.w_hh(packed, index),
                               weights.bias(packed, index),
                               places.direction(output, d, bytes),
                               places.direction(copy, d, bytes),
                               places.state(call.hn, index)};
        typed.forward(task, part.begin, part.end, own_scratch);
      }
      input = output;
    }
  });
}

void run_backward(const Backward& call, const Kernels& kernels, int threads) {
  const Stack& s = call.stack;
  const TypedKernels& typed = kernels.typed[static_cast<int>(s.dtype)];
  const Places places(s);
  const int64_t L = s.num_layers, D = s.num_directions, H = s.hidden_size;
  const int64_t bytes = storage_bytes(s.dtype), wide = accumulator_bytes(s.dtype);
  const Weights weights(s, typed, false);

  // A layer's grad_pre, and the gradient that it hands down.
  const int64_t pre_bytes = weights.form() == Form::kPackedPairs ? bytes : wide;
  const int64_t pre = aligned(places.rows() * D * H * pre_bytes);
  const int64_t between = L > 1 ? aligned(places.rows() * D * H * bytes) : 0;
  // Sums of the weight gradients where storage is narrower; a member has its own rows of them.
  const int64_t features = largest_features(s), sums = bytes < wide ? H * wide : 0;
  const int64_t sums_w_ih = aligned(sums * features), sums_w_hh = aligned(sums * H);
  const int64_t scratch = aligned(task_scratch_bytes(s.dtype, features, H));
  const int members = most_members(threads);
  Workspace workspace(weights.bytes() + pre + between + sums_w_ih + sums_w_hh + members * scratch);
  char* packed = workspace.take(weights.bytes());
  const Sequence grad_pre = places.dense(workspace.take(pre), D * H);
  char* handed_down = workspace.take(between);
  char* sums_of_w_ih = workspace.take(sums_w_ih);
  char* sums_of_w_hh = workspace.take(sums_w_hh);
  char* scratches = workspace.take(members * scratch);

  in_parallel(threads, [&](const Team& team) {
    char* own_scratch = scratches + team.index * scratch;
    weights.pack(packed, team);
    team.wait();
    const Part part(s, team);
    for (int64_t layer = L - 1; layer >= 0; --layer) {
      const bool top = layer == L - 1;
      const Sequence grad_output = top ? call.grad_output : places.dense(handed_down, D * H);
      const Sequence state = places.layer_of(call.saved, layer);
      const Sequence input = layer == 0 ? s.input : places.layer_of(call.saved, layer - 1);
      const Sequence mask = places.mask_of_input(layer);
      InputGradTask below{};
      below.steps = &s.steps;
      below.share = part.columns;
      below.num_directions = static_cast<int>(D);
      below.input_size = places.features(layer);
      below.hidden_size = H;
      below.form = weights.form();
      below.input_mask = mask;
      below.grad_input = layer == 0 ? call.grad_input : places.dense(handed_down, D * H);
      for (int64_t d = 0; d < D; ++d) {
        const int64_t index = layer * D + d;
        below.grad_pre[d] = places.direction(grad_pre, d, pre_bytes);
        below.w_ih[d] = weights.w_ih(packed, index);
        const BackwardTask task{&s.steps,
                                part.columns,
                                d == 1,
                                s.relu,
                                H,
                                places.direction(state, d, bytes),
                                weights.form(),
                                weights.w_hh(packed, index),
                                places.direction(grad_output, d, bytes),
                                places.state(call.grad_hn, index),
                                below.grad_pre[d],
                                places.state(call.grad_hx, index)};
        typed.backward(task, part.begin, part.end, own_scratch);
      }
      if (below.grad_input.data) typed.input_grad(below, part.begin, part.end, own_scratch);
      if (call.grad_weights || part.columns.parts > 1) team.wait();
      if (!call.grad_weights) continue;
      for (int64_t d = 0; d < D; ++d) {
        const int64_t index = layer * D + d;
        void* const* grads = call.grad_weights + index * places.per_index();
        const WeightGradTask task{&s.steps,
                                  weights.form(),
                                  d == 1,
                                  places.features(layer),
                                  H,
                                  below.grad_pre[d],
                                  places.direction(state, d, bytes),
                                  places.hx(index),
                                  s.hx_row_stride,
                                  input,
                                  mask,
                                  sums_of_w_ih,
                                  sums_of_w_hh,
                                  grads[0],
                                  grads[1],
                                  s.has_biases ? grads[2] : nullptr,
                                  s.has_biases ? grads[3] : nullptr};
        typed.weight_grad(task, team.begin(H), team.end(H), own_scratch);
      }
      if (layer > 0) team.wait();  // for all that read grad_pre
    }
  });
}

}  // namespace fastrnn::cpu
