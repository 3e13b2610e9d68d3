// The CUDA half on the CPU, for the tests: the operators' own orchestration and kernels, compiled
// by a C++ compiler, over CPU tensors.
#include <torch/extension.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "arguments.h"
#include "cuda/guard.h"
#include "cuda/launchers.h"
#include "cuda/stack.h"
#include "cuda/step.h"

namespace fastrnn::cuda {
namespace {

using Arguments =
    std::tuple<Tensor, OptionalTensor, std::vector<Tensor>, OptionalTensor, OptionalTensor,
               OptionalTensor, OptionalTensor, bool, int64_t, std::string, bool, bool>;

Device h200(int multiprocessors = 132) {
  return {90, multiprocessors, 227 << 10, 228 << 10, 65536};
}

// "tile" forces that kernel on an H200, "tile@16" on one with 16 multiprocessors, "tile+" the ways
// of large calls.
Context context_of(const std::string& forced, bool tf32) {
  const size_t at = forced.find_first_of("@+");
  const bool large = forced.ends_with('+');
  const int multiprocessors =
      at == std::string::npos || forced[at] == '+' ? 132 : std::stoi(forced.substr(at + 1));
  return {nullptr, h200(multiprocessors), tf32, forced.substr(0, at), nullptr, !large};
}

auto run_forward(const std::string& forced, bool tf32, const Arguments& arguments, bool save) {
  return std::apply([&](const auto&... a) { return forward(context_of(forced, tf32), a..., save); },
                    arguments);
}

auto run_backward(const std::string& forced, bool tf32, const OptionalTensor& grad_output,
                  const OptionalTensor& grad_hn, const Tensor& saved, const Arguments& arguments,
                  bool want_input, bool want_hx, bool want_weights) {
  return std::apply(
      [&](const auto&... a) {
        return backward(context_of(forced, tf32), grad_output, grad_hn, saved, a..., want_input,
                        want_hx, want_weights);
      },
      arguments);
}

// What rnn_extended takes besides.
using ExtendedBy = std::tuple<OptionalTensor, OptionalTensor, double, std::string, bool>;

auto run_forward_extended(const std::string& forced, bool tf32, const Arguments& arguments,
                          const ExtendedBy& extras) {
  return std::apply(
      [&](const auto&... a) { return forward_extended(context_of(forced, tf32), a...); },
      std::tuple_cat(arguments, extras));
}

auto run_forward_extended_and_save(const std::string& forced, bool tf32, const Arguments& arguments,
                                   const ExtendedBy& extras) {
  return std::apply(
      [&](const auto&... a) { return forward_extended_and_save(context_of(forced, tf32), a...); },
      std::tuple_cat(arguments, extras));
}

// wanted: the gradients of input, hx, weights, gates and alpha.
auto run_backward_extended(const std::string& forced, bool tf32,
                           const std::array<OptionalTensor, 3>& grads, const Tensor& saved,
                           const Arguments& arguments, const ExtendedBy& extras,
                           const std::array<bool, 5>& wanted) {
  return std::apply(
      [&](const auto&... a) {
        return backward_extended(context_of(forced, tf32), grads[0], grads[1], grads[2], saved,
                                 a...);
      },
      std::tuple_cat(arguments, extras, wanted));
}

// name, rows, threads, registers, shared bytes, whether it can be launched, and the configuration
auto run_choose(int dtype, bool backward, bool tf32, int64_t seq_len, int64_t batch,
                int64_t hidden_size, int num_directions, const std::vector<int>& device,
                const std::string& forced, bool torch_can_serve, bool has_hx) {
  Device d{device[0], device[1], device[2], device[3], device[4]};
  if (device.size() > 5) d.compiled_for = device[5];
  const Choice c = choose({static_cast<Dtype>(dtype), backward, tf32, seq_len, batch, hidden_size,
                           num_directions, has_hx, torch_can_serve},
                          d, forced);
  return std::tuple(std::string(name_of(c.kernel)), c.rows, c.threads, c.registers, c.shared_bytes,
                    can_launch(c, d), name_of(c));
}

Variant variant_of(const std::string& name, int dtype) {
  for (const Variant& v : variants(h200()))
    if (name_of(v.choice) == name && static_cast<int>(v.dtype) == dtype) return v;
  throw std::invalid_argument("no " + name);
}

// Tensors of a direction, as recurrence.h names them; of any strides, at any address.
using ForwardTensors = std::tuple<bool, Tensor, OptionalTensor, OptionalTensor, OptionalTensor,
                                  Tensor, Tensor, OptionalTensor, Tensor>;
using BackwardTensors =
    std::tuple<bool, Tensor, Tensor, OptionalTensor, OptionalTensor, Tensor, OptionalTensor>;

void* data_of(const OptionalTensor& x) { return x ? x->data_ptr() : nullptr; }
Sequence sequence_of(const OptionalTensor& x) {  // [T, B, H]
  return x ? Sequence{x->data_ptr(), x->stride(0), x->stride(1)} : Sequence{};
}
ForwardDirection direction_of(const ForwardTensors& tensors) {
  const auto& [reverse, w_hh, b_ih, b_hh, hx, igates, output, copy, hn] = tensors;
  return {reverse,
          data_of(w_hh),
          data_of(b_ih),
          data_of(b_hh),
          data_of(hx),
          hx ? hx->stride(0) : 0,
          sequence_of(igates),
          sequence_of(output),
          sequence_of(copy),
          data_of(hn)};
}
BackwardDirection direction_of(const BackwardTensors& tensors) {
  const auto& [reverse, w_hh, output, grad_output, grad_hn, grad_pre, grad_hx] = tensors;
  return {reverse,          data_of(w_hh),         sequence_of(output), sequence_of(grad_output),
          data_of(grad_hn), sequence_of(grad_pre), data_of(grad_hx)};
}

// One launch of a configuration for rows that all have every step, without an operator around it.
// Tells how many copies its threads began in the background.
template <typename Direction, typename Tensors>
int64_t launch_alone(const std::string& name, bool relu, const std::vector<Tensors>& directions) {
  constexpr bool kForward = std::is_same_v<Direction, ForwardDirection>;
  const Tensor& output = std::get<kForward ? 6 : 2>(directions[0]);
  const Variant variant = variant_of(name, static_cast<int>(dtype_of(output)));
  Recurrence<Direction> r{};
  r.dtype = variant.dtype;
  r.nonlinearity = relu ? Nonlinearity::kRelu : Nonlinearity::kTanh;
  r.tf32 = variant.tf32();
  r.rows.seq_len = output.size(0);
  r.rows.batch = output.size(1);
  r.hidden_size = output.size(2);
  for (const Tensors& tensors : directions) r.direction[r.num_directions++] = direction_of(tensors);
  planted.copies = 0;
  const auto run = [&](auto* launcher) { return launcher(r, variant.choice, nullptr); };
  cudaError_t error;
  if constexpr (kForward) {
    error = run(forward_launcher(variant.choice.kernel));
  } else {
    error = run(backward_launcher(variant.choice.kernel));
  }
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  return planted.copies;
}

void plant(const char* spoiled, int of_launches, int of_device, int hang, bool endless,
           bool capturing, const char* missing, std::pair<int, int> ulps) {
  static std::string kept[2];
  kept[0] = spoiled;
  kept[1] = missing;
  planted = {.of_launches = static_cast<cudaError_t>(of_launches),
             .of_device = static_cast<cudaError_t>(of_device),
             .hang = hang,
             .endless = endless,
             .capturing = capturing,
             .spoiled = kept[0].c_str(),
             .missing = kept[1].c_str(),
             .least_ulps = ulps.first,
             .most_ulps = ulps.second};
}

// Of the banks of shared memory: what a warp's lanes at these addresses take.
int wavefronts(const std::vector<uintptr_t>& addresses, int bytes, bool load) {
  banks::Lanes lanes;
  std::copy_n(addresses.begin(), std::min<size_t>(addresses.size(), 32), lanes.address);
  lanes.bytes = bytes;
  return banks::wavefronts(lanes, load ? banks::Access::kLoad : banks::Access::kStore);
}
// By function and access, of the first block since count_wavefronts(): instructions, wavefronts.
auto counted_wavefronts() {
  std::map<std::string, std::pair<int64_t, int64_t>> found;
  for (const auto& [name, count] : banks::stop())
    found[name] = {count.instructions, count.wavefronts};
  return found;
}

// Calls f with what an H200 with this guard gives, and C++ warnings as Python's.
template <typename F>
auto guarded(Guard& guard, const F& f) {
  const torch::PyWarningHandler warnings;
  return f(Context{nullptr, guard.device(), false, "", &guard});
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("plant", plant, py::arg("spoiled") = "", py::arg("of_launches") = 0,
        py::arg("of_device") = 0, py::arg("hang") = 0, py::arg("endless") = false,
        py::arg("capturing") = false, py::arg("missing") = "", py::arg("ulps") = std::pair(0, 0));
  m.def("wavefronts", wavefronts);
  m.def("count_wavefronts", banks::start);
  m.def("counted_wavefronts", counted_wavefronts);
  m.def("sizes", [](const std::string& name, int dtype) {
    const Configuration& c = kConfigurations[variant_of(name, dtype).choice.configuration];
    return py::dict(py::arg("units") = c.units, py::arg("rows") = c.rows,
                    py::arg("blocks") = c.blocks, py::arg("warp_units") = c.warp_units,
                    py::arg("thread_units") = c.thread_units, py::arg("lanes") = c.lanes(),
                    py::arg("warps") = c.threads() / 32, py::arg("slots") = c.slots(),
                    py::arg("stored_fragments") = c.stored_fragments());
  });
  m.def("captured", [] { return planted.captured; });
  m.def("compiled_for", compiled_for);
  m.def("checked_lengths", [](const Tensor& lengths, int64_t seq_len) {
    const Tensor copy = at::empty_like(lengths);
    launch_check_lengths(lengths.const_data_ptr<int64_t>(), lengths.numel(), seq_len,
                         copy.mutable_data_ptr<int64_t>(), nullptr, nullptr);
    return copy;
  });
  m.def("ranked", [](const Tensor& lengths) {
    const Tensor copy = at::empty_like(lengths), order = at::empty_like(lengths);
    launch_check_lengths(lengths.const_data_ptr<int64_t>(), lengths.numel(), INT64_MAX,
                         copy.mutable_data_ptr<int64_t>(), order.mutable_data_ptr<int64_t>(),
                         nullptr);
    return order;
  });
  m.def("launches", [] { return std::exchange(planted.launches, 0); });
  m.def("handles", [] { return std::exchange(planted.handles, 0); });
  py::class_<Guard>(m, "Guard")
      .def(py::init([] {
        return std::make_unique<Guard>("an H200", at::kCPU, h200(), checks_from_environment());
      }))
      .def("why_not",
           [](Guard& guard, const std::string& name, int dtype) {
             return guarded(guard, [&](const Context&) {
               return guard.why_not(variant_of(name, dtype), nullptr);
             });
           })
      .def("why_none", [](Guard& guard) { return guard.why_not(); })
      .def(
          "kernel",
          [](Guard& guard, int dtype, int64_t batch, int64_t hidden_size, bool torch_can_serve) {
            return guarded(guard, [&](const Context& context) {
              const Problem p{static_cast<Dtype>(dtype), false, false, 512, batch, hidden_size, 1};
              return name_of(allowed_choice(p, context, torch_can_serve));
            });
          },
          py::arg(), py::arg(), py::arg(), py::arg("torch_can_serve"))
      .def("forward",
           [](Guard& guard, const Arguments& arguments) {
             return guarded(guard, [&](const Context& context) {
               return std::apply([&](const auto&... a) { return forward(context, a..., true); },
                                 arguments);
             });
           })
      .def("is_faster", [](Guard& guard, const std::vector<int64_t>& key, const py::object& theirs,
                           const py::object& ours) {
        return guard.is_faster(key, nullptr, [&] { theirs(); }, [&] { ours(); });
      });
  m.def("launch_forward", launch_alone<ForwardDirection, ForwardTensors>);
  m.def("launch_backward", launch_alone<BackwardDirection, BackwardTensors>);
  m.def("forward", run_forward);
  m.def("backward", run_backward);
  m.def("forward_extended", run_forward_extended);
  m.def("forward_extended_and_save", run_forward_extended_and_save);
  m.def("backward_extended", run_backward_extended);
  m.def("choose", run_choose, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg(), py::arg(), py::arg("torch_can_serve") = false,
        py::arg("has_hx") = true);
}

}  // namespace fastrnn::cuda
