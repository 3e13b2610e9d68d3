// oneDNN's vanilla RNN, a primitive for each layer, on memory of torch tensors. Only calls are
// timed: primitives, layouts and memory are made beforehand; weights are laid out once for
// inference, at each step in training.
#include <torch/extension.h>

#include <dnnl.hpp>

namespace {

using at::Tensor;
using dnnl::memory;
using Tag = memory::format_tag;

memory::dims sizes(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

struct Layer {
  // input (T, B, I), hx and hn (1, D, B, H), w_ih (1, D, I, 1, H), w_hh (1, D, H, 1, H), b (1, D,
  // 1, H)
  Tensor input, hx, w_ih, w_hh, b, output, hn;
  Tensor grad_output, grad_hn, grad_input, grad_hx, grad_w_ih, grad_w_hh, grad_b;
  dnnl::primitive forward, backward;
  memory w_ih_forward, w_hh_forward, w_ih_backward, w_hh_backward, workspace;
};

class Rnn {
 public:
  Rnn(bool training, bool relu, bool bidirectional, const Tensor& input,
      const std::vector<Tensor>& hx, const std::vector<Tensor>& w_ih,
      const std::vector<Tensor>& w_hh, const std::vector<Tensor>& b, const Tensor& grad_output)
      : engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        training_(training),
        layers_(hx.size()) {
    Tensor below = input;
    for (size_t l = 0; l < layers_.size(); ++l) {
      Layer& x = layers_[l];
      x.input = below;
      x.hx = hx[l], x.w_ih = w_ih[l], x.w_hh = w_hh[l], x.b = b[l];
      x.output = at::empty({input.size(0), input.size(1), x.hx.size(1) * x.hx.size(3)});
      x.hn = at::empty_like(x.hx);
      make(x, relu, bidirectional);
      below = x.output;
    }
    if (training) {
      Tensor above = grad_output;
      for (auto x = layers_.rbegin(); x != layers_.rend(); ++x) {
        x->grad_output = above;
        above = x->grad_input;
      }
    } else {
      for (Layer& x : layers_) pack(x);
    }
  }

  void step() {
    for (Layer& x : layers_) {
      if (training_) pack(x);
      Arguments arguments = common(x, x.w_ih_forward, x.w_hh_forward);
      x.forward.execute(stream_, arguments);
    }
    if (training_) {
      for (auto x = layers_.rbegin(); x != layers_.rend(); ++x) step_back(*x);
    }
    stream_.wait();
  }

  // output, hn of each layer and, in training, the gradients of input and of each layer's hx, w_ih,
  // w_hh, b
  std::vector<Tensor> results() const {
    std::vector<Tensor> found{layers_.back().output};
    for (const Layer& x : layers_) found.push_back(x.hn);
    if (training_) {
      found.push_back(layers_.front().grad_input);
      for (const Layer& x : layers_)
        found.insert(found.end(), {x.grad_hx, x.grad_w_ih, x.grad_w_hh, x.grad_b});
    }
    return found;
  }

 private:
  using Arguments = std::unordered_map<int, memory>;

  memory wrap(const Tensor& x, Tag tag) {
    return {{sizes(x), memory::data_type::f32, tag}, engine_, x.data_ptr()};
  }

  void make(Layer& x, bool relu, bool bidirectional) {
    const auto desc = [](const Tensor& t, Tag tag) {
      return memory::desc(sizes(t), memory::data_type::f32, tag);
    };
    const auto activation = relu ? dnnl::algorithm::eltwise_relu : dnnl::algorithm::eltwise_tanh;
    const auto direction = bidirectional ? dnnl::rnn_direction::bidirectional_concat
                                         : dnnl::rnn_direction::unidirectional_left2right;
    const memory::desc input = desc(x.input, Tag::tnc), state = desc(x.hx, Tag::ldnc),
                       output = desc(x.output, Tag::tnc), bias = desc(x.b, Tag::ldgo),
                       w_ih = desc(x.w_ih, Tag::any), w_hh = desc(x.w_hh, Tag::any);
    const auto kind =
        training_ ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference;
    const dnnl::vanilla_rnn_forward::primitive_desc forward(
        engine_, kind, activation, direction, input, state, w_ih, w_hh, bias, output, state);
    x.forward = dnnl::vanilla_rnn_forward(forward);
    x.w_ih_forward = memory(forward.weights_layer_desc(), engine_);
    x.w_hh_forward = memory(forward.weights_iter_desc(), engine_);
    if (!training_) return;
    const memory::desc grad_w_ih = desc(x.w_ih, Tag::ldigo), grad_w_hh = desc(x.w_hh, Tag::ldigo);
    const dnnl::vanilla_rnn_backward::primitive_desc backward(
        engine_, dnnl::prop_kind::backward, activation, direction, input, state, w_ih, w_hh, bias,
        output, state, input, state, grad_w_ih, grad_w_hh, bias, output, state, forward);
    x.backward = dnnl::vanilla_rnn_backward(backward);
    x.w_ih_backward = memory(backward.weights_layer_desc(), engine_);
    x.w_hh_backward = memory(backward.weights_iter_desc(), engine_);
    x.workspace = memory(forward.workspace_desc(), engine_);
    x.grad_input = at::empty_like(x.input);
    x.grad_hx = at::empty_like(x.hx);
    x.grad_hn = at::zeros_like(x.hn);
    x.grad_w_ih = at::empty_like(x.w_ih);
    x.grad_w_hh = at::empty_like(x.w_hh);
    x.grad_b = at::empty_like(x.b);
  }

  void pack(Layer& x) {
    const auto reorder = [&](const Tensor& from, memory& to) {
      memory plain = wrap(from, Tag::ldigo);
      dnnl::reorder(plain, to).execute(stream_, plain, to);
    };
    reorder(x.w_ih, x.w_ih_forward);
    reorder(x.w_hh, x.w_hh_forward);
    if (training_) {
      reorder(x.w_ih, x.w_ih_backward);
      reorder(x.w_hh, x.w_hh_backward);
    }
    stream_.wait();
  }

  Arguments common(const Layer& x, const memory& w_ih, const memory& w_hh) {
    Arguments arguments{{DNNL_ARG_SRC_LAYER, wrap(x.input, Tag::tnc)},
                        {DNNL_ARG_SRC_ITER, wrap(x.hx, Tag::ldnc)},
                        {DNNL_ARG_WEIGHTS_LAYER, w_ih},
                        {DNNL_ARG_WEIGHTS_ITER, w_hh},
                        {DNNL_ARG_BIAS, wrap(x.b, Tag::ldgo)},
                        {DNNL_ARG_DST_LAYER, wrap(x.output, Tag::tnc)},
                        {DNNL_ARG_DST_ITER, wrap(x.hn, Tag::ldnc)}};
    if (training_) arguments.emplace(DNNL_ARG_WORKSPACE, x.workspace);
    return arguments;
  }

  void step_back(Layer& x) {
    for (const Tensor& sum : {x.grad_w_ih, x.grad_w_hh, x.grad_b})
      sum.zero_();  // oneDNN adds to them
    Arguments arguments = common(x, x.w_ih_backward, x.w_hh_backward);
    arguments.emplace(DNNL_ARG_DIFF_SRC_LAYER, wrap(x.grad_input, Tag::tnc));
    arguments.emplace(DNNL_ARG_DIFF_SRC_ITER, wrap(x.grad_hx, Tag::ldnc));
    arguments.emplace(DNNL_ARG_DIFF_WEIGHTS_LAYER, wrap(x.grad_w_ih, Tag::ldigo));
    arguments.emplace(DNNL_ARG_DIFF_WEIGHTS_ITER, wrap(x.grad_w_hh, Tag::ldigo));
    arguments.emplace(DNNL_ARG_DIFF_BIAS, wrap(x.grad_b, Tag::ldgo));
    arguments.emplace(DNNL_ARG_DIFF_DST_LAYER, wrap(x.grad_output, Tag::tnc));
    arguments.emplace(DNNL_ARG_DIFF_DST_ITER, wrap(x.grad_hn, Tag::ldnc));
    x.backward.execute(stream_, arguments);
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  bool training_;
  std::vector<Layer> layers_;
};

std::string version() {
  const dnnl_version_t* v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("version", version);
  py::class_<Rnn>(m, "Rnn")
      .def(py::init<bool, bool, bool, Tensor, std::vector<Tensor>, std::vector<Tensor>,
                    std::vector<Tensor>, std::vector<Tensor>, Tensor>())
      .def("step", &Rnn::step)
      .def("results", &Rnn::results);
}
