// The raw CPU kernels on NumPy arrays, for the tests: no torch, any instruction set that the
// machine has. And the plans that they run by, chosen or forced.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/stack.h"

#if defined(__linux__)
extern "C" void omp_set_num_threads(int threads);  // of libgomp
#endif

namespace py = pybind11;
using fastrnn::Dtype;
namespace cpu = fastrnn::cpu;

namespace {

constexpr const char* kForms[] = {"as they came", "packed", "packed pairs"};

cpu::Form form_of(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kForms[i]) return static_cast<cpu::Form>(i);
  }
  throw py::value_error("no such form: " + name);
}

// Calls f with the name and the value of each field.
template <typename F>
void for_fields(cpu::Problem& p, const F& f) {
  f("backward", p.backward);
  f("seq_len", p.seq_len);
  f("batch", p.batch);
  f("input_size", p.input_size);
  f("hidden_size", p.hidden_size);
  f("num_layers", p.num_layers);
  f("num_directions", p.num_directions);
  f("rows", p.rows);
  f("first_rows", p.first_rows);
  f("packed", p.packed);
}
template <typename F>
void for_fields(cpu::Plan& p, const F& f) {
  f("threads", p.threads);
  f("share_columns", p.share_columns);
  f("share_input_grad", p.share_input_grad);
  f("form", p.form);
  f("split", p.split);
  f("opposed", p.opposed);
  f("fused_rows", p.fused_rows[0]);
  f("fused_rows_above", p.fused_rows[1]);
  f("fetch_rows", p.fetch_rows);
  f("fetch_w_ih", p.fetch_w_ih[0]);
  f("fetch_w_ih_above", p.fetch_w_ih[1]);
  f("fetch_w_hh", p.fetch_w_hh);
}

// Sets the fields that the dictionary names.
template <typename Fields>
void set(Fields& to, py::dict from) {
  for_fields(to, [&](const char* name, auto& field) {
    if (!from.contains(name)) return;
    const py::object value = from.attr("pop")(name);
    using Field = std::decay_t<decltype(field)>;
    if constexpr (std::is_same_v<Field, cpu::Form>) {
      field = form_of(value.cast<std::string>());
    } else {
      field = value.cast<Field>();
    }
  });
  if (!from.empty()) throw py::value_error("no such field: " + py::str(from).cast<std::string>());
}

py::dict choose(const py::dict& fields, int dtype, bool pairs, int64_t panel_bytes, int threads) {
  cpu::Problem problem{};
  problem.dtype = static_cast<Dtype>(dtype);
  set(problem, py::dict(**fields));
  const cpu::KernelTraits traits{pairs ? cpu::Form::kPackedPairs : cpu::Form::kPacked, panel_bytes,
                                 0};
  cpu::Plan plan = cpu::choose(problem, traits, threads);
  py::dict chosen;
  for_fields(plan, [&](const char* name, auto& field) {
    if constexpr (std::is_same_v<std::decay_t<decltype(field)>, cpu::Form>) {
      chosen[name] = kForms[static_cast<int>(field)];
    } else {
      chosen[name] = field;
    }
  });
  return chosen;
}

// Rows, and part of the columns, of each thread. active is empty where every row has every step.
std::vector<std::vector<int64_t>> parts(int64_t seq_len, int64_t batch,
                                        const std::vector<int64_t>& active, bool share_columns,
                                        int threads) {
  cpu::Plan plan{};
  plan.share_columns = share_columns;
  cpu::Steps steps{};
  steps.seq_len = seq_len;
  steps.batch = batch;
  if (!active.empty()) steps.active = active.data();
  std::vector<std::vector<int64_t>> found;
  for (int i = 0; i < threads; ++i) {
    const cpu::Part part = cpu::choose_part(plan, steps, i, threads);
    found.push_back({part.row_begin, part.row_end, part.column_part, part.column_parts});
  }
  return found;
}

int64_t torch_step_work(int64_t vector_bytes) {
  return cpu::torch_step_work({cpu::Form::kPacked, 0, vector_bytes});
}

bool available(const std::string& isa) { return cpu::find_kernels(isa.c_str()) != nullptr; }

// input (T, B, I); weights for each layer and direction; lengths sorted, longest first, or empty;
// arrays C-contiguous.
struct Call {
  cpu::Stack stack{};
  std::vector<const void*> weights;
  std::vector<int64_t> active;

  Call(const py::array& input, const std::vector<py::array>& weight_arrays, const py::object& hx,
       const std::vector<int64_t>& lengths, int dtype, bool relu, bool has_biases, int64_t layers,
       bool bidirectional) {
    stack.dtype = static_cast<Dtype>(dtype);
    stack.nonlinearity = relu ? fastrnn::Nonlinearity::kRelu : fastrnn::Nonlinearity::kTanh;
    stack.has_biases = has_biases;
    stack.num_layers = layers;
    stack.num_directions = bidirectional ? 2 : 1;
    stack.input_size = input.shape(2);
    stack.hidden_size = weight_arrays[1].shape(0);
    const int64_t T = input.shape(0), B = input.shape(1);
    stack.steps = {T, B, nullptr, nullptr, nullptr, nullptr, 0, 0};
    if (!lengths.empty()) {
      for (int64_t t = 0; t < T; ++t) {
        int64_t n = 0;
        for (int64_t length : lengths) n += length > t;
        active.push_back(n);
      }
      stack.steps.active = active.data();
    }
    stack.input = sequence(input);
    for (const py::array& w : weight_arrays) weights.push_back(w.data());
    stack.weights = weights.data();
    if (!hx.is_none()) {
      stack.hx = hx.cast<py::array>().data();
      stack.hx_layer_stride = B * stack.hidden_size;
      stack.hx_row_stride = stack.hidden_size;
    }
  }

  // The plan that is chosen, but for what `forced` says.
  cpu::Plan plan(const cpu::Kernels& kernels, bool backward, const py::dict& forced) const {
    const auto& traits = cpu::kernels_for(kernels, stack.dtype).traits;
    const int threads = forced.contains("threads") ? forced["threads"].cast<int>() : 1;
    cpu::Plan plan = cpu::choose(cpu::problem_of(stack, backward), traits, threads);
    set(plan, py::dict(**forced));
    return plan;
  }

  static fastrnn::Sequence sequence(const py::array& x) {
    return {const_cast<void*>(x.data()), x.shape(1) * x.shape(2), x.shape(2)};
  }
};

void forward(const std::string& isa, const py::dict& forced, py::array output, py::array hn,
             const py::object& saved, const py::array& input, const std::vector<py::array>& weights,
             const py::object& hx, const std::vector<int64_t>& lengths, int dtype, bool relu,
             bool has_biases, int64_t layers, bool bidirectional) {
  const Call c(input, weights, hx, lengths, dtype, relu, has_biases, layers, bidirectional);
  const cpu::Kernels& kernels = *cpu::find_kernels(isa.c_str());
  void* kept = saved.is_none() ? nullptr : saved.cast<py::array>().mutable_data();
  cpu::run_forward({c.stack, Call::sequence(output), hn.mutable_data(), kept}, kernels,
                   c.plan(kernels, false, forced));
}

void backward(const std::string& isa, const py::dict& forced, const py::array& saved,
              const py::array& grad_output, const py::array& grad_hn, py::array grad_input,
              py::array grad_hx, std::vector<py::array> grad_weights, const py::array& input,
              const std::vector<py::array>& weights, const py::object& hx,
              const std::vector<int64_t>& lengths, int dtype, bool relu, bool has_biases,
              int64_t layers, bool bidirectional) {
  const Call c(input, weights, hx, lengths, dtype, relu, has_biases, layers, bidirectional);
  const cpu::Kernels& kernels = *cpu::find_kernels(isa.c_str());
  std::vector<void*> grads;
  for (py::array& g : grad_weights) grads.push_back(g.mutable_data());
  cpu::run_backward({c.stack, saved.data(), Call::sequence(grad_output), grad_hn.data(),
                     Call::sequence(grad_input), grad_hx.mutable_data(), grads.data()},
                    kernels, c.plan(kernels, true, forced));
}

// A call from a dictionary, with everything that a Stack can say: tensors are (address, strides of
// all dimensions but the last), or None.
class Described {
 public:
  explicit Described(const py::dict& call) : call_(call) {
    stack.dtype = static_cast<Dtype>(number("dtype"));
    stack.nonlinearity =
        number("relu") ? fastrnn::Nonlinearity::kRelu : fastrnn::Nonlinearity::kTanh;
    stack.has_biases = number("bias") != 0;
    stack.num_layers = number("num_layers");
    stack.num_directions = number("num_directions");
    stack.input_size = number("input_size");
    stack.hidden_size = number("hidden_size");
    stack.steps = {number("seq_len"), number("batch"), list("start", start_),
                   list("active", active_), list("order", order_)};
    stack.steps.reset = static_cast<const bool*>(sequence("reset").data);
    stack.steps.reset_step_stride = sequence("reset").step_stride;
    stack.steps.reset_row_stride = sequence("reset").row_stride;
    stack.input = sequence("input");
    stack.hx = sequence("hx").data;
    stack.hx_layer_stride = sequence("hx").step_stride;
    stack.hx_row_stride = sequence("hx").row_stride;
    stack.dropout_mask = sequence("dropout_mask").data;
    stack.weights = addresses("weights", weights_);
  }

  cpu::Plan plan(const cpu::Kernels& kernels, bool backward, const py::dict& forced) const {
    const auto& traits = cpu::kernels_for(kernels, stack.dtype).traits;
    const int threads = static_cast<int>(number("threads"));
#if defined(__linux__)
    omp_set_num_threads(threads);
#endif
    cpu::Plan plan = cpu::choose(cpu::problem_of(stack, backward), traits, threads);
    set(plan, py::dict(**forced));
    return plan;
  }

  fastrnn::Sequence sequence(const char* name) const {
    const py::object x = call_[name];
    if (x.is_none()) return {};
    const auto [address, step, row] = x.cast<std::tuple<intptr_t, int64_t, int64_t>>();
    return {reinterpret_cast<void*>(address), step, row};
  }
  template <typename T>
  T* const* addresses(const char* name, std::vector<T*>& kept) const {
    const py::object x = call_[name];
    if (x.is_none()) return nullptr;
    for (intptr_t address : x.cast<std::vector<intptr_t>>())
      kept.push_back(reinterpret_cast<T*>(address));
    return kept.data();
  }

  cpu::Stack stack{};

 private:
  int64_t number(const char* name) const { return call_[name].cast<int64_t>(); }
  const int64_t* list(const char* name, std::vector<int64_t>& kept) const {
    const py::object x = call_[name];
    if (x.is_none()) return nullptr;
    kept = x.cast<std::vector<int64_t>>();
    return kept.data();
  }

  py::dict call_;
  std::vector<int64_t> start_, active_, order_;
  std::vector<const void*> weights_;
};

void run_forward(const std::string& isa, const py::dict& forced, const py::dict& call) {
  const Described c(call);
  const cpu::Kernels& kernels = *cpu::find_kernels(isa.c_str());
  cpu::run_forward({c.stack, c.sequence("output"), c.sequence("hn").data, c.sequence("saved").data},
                   kernels, c.plan(kernels, false, forced));
}

void run_backward(const std::string& isa, const py::dict& forced, const py::dict& call) {
  const Described c(call);
  const cpu::Kernels& kernels = *cpu::find_kernels(isa.c_str());
  std::vector<void*> grads;
  cpu::run_backward(
      {c.stack, c.sequence("saved").data, c.sequence("grad_output"), c.sequence("grad_hn").data,
       c.sequence("grad_input"), c.sequence("grad_hx").data, c.addresses("grad_weights", grads)},
      kernels, c.plan(kernels, true, forced));
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("available", available);
  m.def("forward", forward);
  m.def("backward", backward);
  m.def("run_forward", run_forward);
  m.def("run_backward", run_backward);
  m.def("choose", choose);
  m.def("parts", parts);
  m.def("torch_step_work", torch_step_work);
  m.attr("NEVER") = cpu::kNever;
}
