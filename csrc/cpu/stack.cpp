// A call from start to end: weights are packed, and a team of threads runs layer after layer, each
// member a share of the rows or of the columns.
#include "cpu/stack.h"

#include "cpu/places.h"
#include "cpu/team.h"
#include "cpu/weights.h"
#include "cpu/workspace.h"

namespace fastrnn::cpu {
namespace {

int64_t valid_rows(const Steps& s) {
  if (!s.active) return s.seq_len * s.batch;
  int64_t rows = 0;
  for (int64_t t = 0; t < s.seq_len; ++t) rows += s.active[t];
  return rows;
}

int64_t largest_features(const Stack& s) {
  const int64_t inner = s.num_layers > 1 ? s.num_directions * s.hidden_size : 0;
  return inner > s.input_size ? inner : s.input_size;
}

int64_t scratch_bytes(const Stack& s) {
  return aligned(task_scratch_bytes(s.dtype, largest_features(s), s.hidden_size, s.extended));
}

// What a member of the team works on, and the memory it uses.
struct Work {
  int64_t row_begin, row_end;
  Share share;  // of the columns
  char* scratch;

  Work(const Plan& plan, const Steps& steps, const Team& team, char* scratch) : scratch(scratch) {
    const Part part = choose_part(plan, steps, team.index, team.size);
    row_begin = part.row_begin;
    row_end = part.row_end;
    share = {part.column_part, part.column_parts,
             [](const void* t) { static_cast<const Team*>(t)->wait(); }, &team};
  }
};

class ForwardCall {
 public:
  ForwardCall(const Forward& call, const TypedKernels& kernels, const Plan& plan)
      : call_(call),
        stack_(call.stack),
        kernels_(kernels),
        plan_(plan),
        places_(stack_),
        weights_(stack_, kernels, plan.form, true),
        between_(call.saved || stack_.num_layers == 1
                     ? 0
                     : aligned(places_.layer_elements() * storage_bytes(stack_.dtype))),
        scratch_(scratch_bytes(stack_)),
        workspace_(weights_.bytes() + 2 * between_ + most_members(plan.threads) * scratch_) {
    weights_.use(workspace_.take(weights_.bytes()));
    for (char*& buffer : buffers_) buffer = workspace_.take(between_);
    scratches_ = workspace_.take(most_members(plan.threads) * scratch_);
  }

  // What one member of the team does.
  void run(const Team& team) {
    const Work work(plan_, stack_.steps, team, scratches_ + team.index * scratch_);
    Sequence input = stack_.input;
    for (int64_t layer = 0; layer < stack_.num_layers; ++layer) {
      weights_.pack(team, layer, layer == 0);
      const Sequence output = output_of(layer);
      for (int64_t d = 0; d < stack_.num_directions; ++d) {
        kernels_.forward(task(layer, d, input, output, work.share), work.row_begin, work.row_end,
                         work.scratch);
      }
      input = output;
    }
  }

 private:
  // Where a layer's output goes: all are kept, or two buffers take turns between the layers.
  Sequence output_of(int64_t layer) const {
    if (call_.saved) return places_.layer_of(call_.saved, layer);
    if (layer == stack_.num_layers - 1) return call_.output;
    return places_.dense(buffers_[layer & 1], places_.width());
  }

  ForwardTask task(int64_t layer, int64_t d, const Sequence& input, const Sequence& output,
                   const Share& share) const {
    const int64_t index = layer * stack_.num_directions + d;
    // The caller may write to the output, so what is saved is another.
    const bool copied = call_.saved && layer == stack_.num_layers - 1;
    return {.steps = &stack_.steps,
            .plan = &plan_,
            .above = layer > 0,
            .share = share,
            .reverse = d == 1,
            .nonlinearity = stack_.nonlinearity,
            .input_size = places_.features(layer),
            .hidden_size = stack_.hidden_size,
            .input = input,
            .input_mask = places_.mask_of_input(layer),
            .hx = places_.hx(index),
            .hx_row_stride = stack_.hx_row_stride,
            .w_ih = weights_.w_ih(index),
            .w_hh = weights_.w_hh(index),
            .skips_zeros = !stack_.hx && weights_.finite(),
            .bias = weights_.bias(index),
            .output = places_.direction(output, d),
            .copy = places_.direction(copied ? call_.output : Sequence{}, d),
            .hn = places_.state(call_.hn, index),
            .gates = places_.direction(places_.gates(stack_.gates, layer), d),
            .leak = stack_.leak,
            .alpha = places_.alpha(index),
            .leaky_hx = places_.hx(stack_.leaky_hx, index),
            .kept = places_.direction(places_.layer_of(call_.kept, layer), d)};
  }

  const Forward& call_;
  const Stack& stack_;
  const TypedKernels& kernels_;
  const Plan& plan_;
  const Places places_;
  Weights weights_;
  const int64_t between_, scratch_;  // bytes
  Workspace workspace_;
  char *buffers_[2], *scratches_;
};

class BackwardCall {
 public:
  BackwardCall(const Backward& call, const TypedKernels& kernels, const Plan& plan)
      : call_(call),
        stack_(call.stack),
        kernels_(kernels),
        plan_(plan),
        places_(stack_),
        weights_(stack_, kernels, plan.form, false),
        pre_bytes_(plan.form == Form::kPackedPairs ? storage_bytes(stack_.dtype)
                                                   : accumulator_bytes(stack_.dtype)),
        scratch_(scratch_bytes(stack_)),
        workspace_(bytes()) {
    weights_.use(workspace_.take(weights_.bytes()));
    grad_pre_ = places_.dense(workspace_.take(grad_pre_size()), places_.width());
    handed_down_ = workspace_.take(handed_down_size());
    sums_of_w_ih_ = workspace_.take(sums_size(largest_features(stack_)));
    sums_of_w_hh_ = workspace_.take(sums_size(stack_.hidden_size));
    scratches_ = workspace_.take(most_members(plan.threads) * scratch_);
    grad_state_ = places_.dense(workspace_.take(grad_state_size()), places_.width());
    if (!call.grad_alpha) grad_state_.data = nullptr;
  }

  // What one member of the team does.
  void run(const Team& team) {
    const Work work(plan_, stack_.steps, team, scratches_ + team.index * scratch_);
    for (int64_t layer = stack_.num_layers - 1; layer >= 0; --layer) {
      weights_.pack(team, layer, layer == stack_.num_layers - 1);
      for (int64_t d = 0; d < stack_.num_directions; ++d) {
        kernels_.backward(task(layer, d, work.share), work.row_begin, work.row_end, work.scratch);
      }
      const InputGradTask below = input_grad_task(layer, work.share);
      if (below.grad_input.data) {
        kernels_.input_grad(below, work.row_begin, work.row_end, work.scratch);
      }
      if (call_.grad_weights || call_.grad_alpha || plan_.share_columns) team.wait();
      if (!call_.grad_weights && !call_.grad_alpha) continue;
      const int64_t begin = team.begin(stack_.hidden_size), end = team.end(stack_.hidden_size);
      for (int64_t d = 0; d < stack_.num_directions; ++d) {
        if (call_.grad_weights)
          kernels_.weight_grad(weight_grad_task(layer, d), begin, end, work.scratch);
        if (call_.grad_alpha)
          kernels_.alpha_grad(alpha_grad_task(layer, d), begin, end, work.scratch);
      }
      if (layer > 0) team.wait();  // until all have read grad_pre
    }
  }

 private:
  int64_t index(int64_t layer, int64_t d) const { return layer * stack_.num_directions + d; }

  // Bytes of a layer's grad_pre, and of the gradient that it hands down.
  int64_t grad_pre_size() const { return aligned(places_.layer_elements() * pre_bytes_); }
  int64_t handed_down_size() const {
    if (stack_.num_layers == 1) return 0;
    return aligned(places_.layer_elements() * storage_bytes(stack_.dtype));
  }
  // Bytes of a weight gradient's sums, if storage is narrower; each member has rows of its own.
  int64_t sums_size(int64_t columns) const {
    const int64_t wide = accumulator_bytes(stack_.dtype);
    return storage_bytes(stack_.dtype) < wide ? aligned(stack_.hidden_size * columns * wide) : 0;
  }
  int64_t grad_state_size() const {
    if (!call_.grad_alpha) return 0;
    return aligned(places_.layer_elements() * accumulator_bytes(stack_.dtype));
  }
  int64_t bytes() const {
    return grad_state_size() + weights_.bytes() + grad_pre_size() + handed_down_size() +
           sums_size(largest_features(stack_)) + sums_size(stack_.hidden_size) +
           most_members(plan_.threads) * scratch_;
  }

  Sequence grad_pre(int64_t d) const { return places_.direction(grad_pre_, d, pre_bytes_); }
  Sequence state(int64_t layer, int64_t d) const {
    return places_.direction(places_.layer_of(call_.saved, layer), d);
  }

  BackwardTask task(int64_t layer, int64_t d, const Share& share) const {
    const Sequence grad_output = layer == stack_.num_layers - 1
                                     ? call_.grad_output
                                     : places_.dense(handed_down_, places_.width());
    return {.steps = &stack_.steps,
            .plan = &plan_,
            .share = share,
            .reverse = d == 1,
            .nonlinearity = stack_.nonlinearity,
            .hidden_size = stack_.hidden_size,
            .state = state(layer, d),
            .w_hh = weights_.w_hh(index(layer, d)),
            .grad_output = places_.direction(grad_output, d),
            .grad_hn = places_.state(call_.grad_hn, index(layer, d)),
            .grad_pre = grad_pre(d),
            .grad_hx = places_.state(call_.grad_hx, index(layer, d)),
            .grad_layer = places_.direction(places_.layer_of(call_.grad_layers, layer), d),
            .grad_gates = places_.direction(places_.gates(call_.grad_gates, layer), d),
            .leak = stack_.leak,
            .alpha = places_.alpha(index(layer, d)),
            .kept = places_.direction(places_.layer_of(call_.kept, layer), d),
            .hx = places_.hx(index(layer, d)),
            .hx_row_stride = stack_.hx_row_stride,
            .grad_state = grad_state(d)};
  }
  Sequence grad_state(int64_t d) const {
    return places_.direction(grad_state_, d, accumulator_bytes(stack_.dtype));
  }

  AlphaGradTask alpha_grad_task(int64_t layer, int64_t d) const {
    return {.steps = &stack_.steps,
            .reverse = d == 1,
            .leak = stack_.leak,
            .input_size = places_.features(layer),
            .hidden_size = stack_.hidden_size,
            .grad_state = grad_state(d),
            .kept = places_.direction(places_.layer_of(call_.kept, layer), d),
            .state = state(layer, d),
            .hx = places_.hx(index(layer, d)),
            .hx_row_stride = stack_.hx_row_stride,
            .grad_alpha = static_cast<char*>(call_.grad_alpha) +
                          index(layer, d) * stack_.hidden_size * accumulator_bytes(stack_.dtype)};
  }

  InputGradTask input_grad_task(int64_t layer, const Share& share) const {
    InputGradTask task{
        .steps = &stack_.steps,
        .plan = &plan_,
        .above = layer > 0,
        .share = share,
        .num_directions = static_cast<int>(stack_.num_directions),
        .input_size = places_.features(layer),
        .hidden_size = stack_.hidden_size,
        .grad_pre = {},
        .w_ih = {},
        .grad_input = layer == 0 ? call_.grad_input : places_.dense(handed_down_, places_.width()),
        .input_mask = places_.mask_of_input(layer)};
    for (int64_t d = 0; d < stack_.num_directions; ++d) {
      task.grad_pre[d] = grad_pre(d);
      task.w_ih[d] = weights_.w_ih(index(layer, d));
    }
    return task;
  }

  WeightGradTask weight_grad_task(int64_t layer, int64_t d) const {
    void* const* grads = call_.grad_weights + index(layer, d) * places_.per_index();
    return {.steps = &stack_.steps,
            .plan = &plan_,
            .reverse = d == 1,
            .input_size = places_.features(layer),
            .hidden_size = stack_.hidden_size,
            .grad_pre = grad_pre(d),
            .state = state(layer, d),
            .hx = places_.hx(index(layer, d)),
            .hx_row_stride = stack_.hx_row_stride,
            .input = layer == 0 ? stack_.input : places_.layer_of(call_.saved, layer - 1),
            .input_mask = places_.mask_of_input(layer),
            .sums_w_ih = sums_of_w_ih_,
            .sums_w_hh = sums_of_w_hh_,
            .grad_w_ih = grads[0],
            .grad_w_hh = grads[1],
            .grad_b_ih = stack_.has_biases ? grads[2] : nullptr,
            .grad_b_hh = stack_.has_biases ? grads[3] : nullptr};
  }

  const Backward& call_;
  const Stack& stack_;
  const TypedKernels& kernels_;
  const Plan& plan_;
  const Places places_;
  Weights weights_;
  const int64_t pre_bytes_;  // of an element of grad_pre
  const int64_t scratch_;    // bytes
  Workspace workspace_;
  Sequence grad_pre_, grad_state_;
  char *handed_down_, *sums_of_w_ih_, *sums_of_w_hh_, *scratches_;
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
  ForwardCall forward(call, kernels_for(kernels, call.stack.dtype), plan);
  in_parallel(plan.threads, [&](const Team& team) { forward.run(team); });
}

void run_backward(const Backward& call, const Kernels& kernels, const Plan& plan) {
  BackwardCall backward(call, kernels_for(kernels, call.stack.dtype), plan);
  in_parallel(plan.threads, [&](const Team& team) { backward.run(team); });
}

}  // namespace fastrnn::cpu
