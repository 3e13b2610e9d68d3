// Runs a compiled model that holds an RNN, without Python.
//
//   run_rnn model.pt2 input.pt output.pt
//
// model.pt2 comes from torch._inductor.aoti_compile_and_package, input.pt from torch.save of one
// tensor; torch.load reads output.pt, the model's results as a tuple. export_model.py beside this
// file makes a model and an input, and CMakeLists.txt says how to build.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>

namespace {

torch::Tensor read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "run_rnn: cannot read ", path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const torch::IValue value = torch::pickle_load(bytes);
  TORCH_CHECK(value.isTensor(), "run_rnn: expected a tensor in ", path, ", got ", value.tagKind());
  return value.toTensor();
}

void write(const std::string& path, const std::vector<torch::Tensor>& tensors) {
  const auto elements = std::vector<torch::IValue>(tensors.begin(), tensors.end());
  const std::vector<char> bytes = torch::pickle_save(c10::ivalue::Tuple::create(elements));
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  TORCH_CHECK(file.flush(), "run_rnn: cannot write ", path);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: run_rnn model.pt2 input.pt output.pt\n";
    return 2;
  }
  try {
    const c10::InferenceMode no_gradients;
    torch::inductor::AOTIModelPackageLoader model(argv[1]);
    const std::vector<torch::Tensor> inputs{read(argv[2])};
    std::vector<torch::Tensor> outputs = model.run(inputs);  // the first run loads the weights
    const auto begin = std::chrono::steady_clock::now();
    outputs = model.run(inputs);
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
    for (const auto& x : outputs) std::cout << x.sizes() << ' ' << x.dtype() << '\n';
    std::cout << time.count() << " microseconds\n";
    write(argv[3], outputs);
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
