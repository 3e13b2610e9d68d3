// The model of csrc/cuda/choose.cpp as a program, for benchmarks/gpu/fit.py.
//
//   estimate list    constants and configurations, as JSON
//   estimate         answers lines of its input, on a Hopper GPU; calls have one layer and
//   direction
//
//     multiprocessors N
//     at_once NAME DTYPE GROUPS      that run at a time, of a configuration
//     constants X X ...              all of them, in the order of the list
//     step NAME DTYPE TF32 PASS B H  nanoseconds of a step, or nan: it cannot serve this
//     choose DTYPE TF32 PASS B H     what choose() takes
#include <cstdio>
#include <iostream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "cuda/step_times.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

struct Constant {
  const char* name;
  double StepTimes::* place;
};
constexpr Constant kConstants[] = {
    {"latency", &StepTimes::latency},           {"fma_rate", &StepTimes::fma_rate},
    {"tf32_rate", &StepTimes::tf32_rate},       {"narrow_rate", &StepTimes::narrow_rate},
    {"warp_load", &StepTimes::warp_load},       {"shared_rate", &StepTimes::shared_rate},
    {"cluster_hop", &StepTimes::cluster_hop},   {"cluster_rate", &StepTimes::cluster_rate},
    {"weights_rate", &StepTimes::weights_rate}, {"launches", &StepTimes::launches},
    {"product_rate", &StepTimes::product_rate}, {"torch_small", &StepTimes::torch_small},
    {"torch_large", &StepTimes::torch_large},
};
static_assert(sizeof(StepTimes) == std::size(kConstants) * sizeof(double));

constexpr const char* kDtypes[] = {"float32", "float64", "bfloat16", "float16"};
constexpr int64_t kLong = 1 << 30;  // steps: loading w_hh is nothing beside them

Dtype dtype_of(const std::string& name) {
  for (size_t i = 0; i < std::size(kDtypes); ++i)
    if (name == kDtypes[i]) return static_cast<Dtype>(i);
  throw std::invalid_argument("expected a dtype, got " + name);
}

void list() {
  std::printf("{\"constants\": {");
  for (const Constant& c : kConstants)
    std::printf("%s\"%s\": %.17g", &c == kConstants ? "" : ", ", c.name, StepTimes{}.*c.place);
  std::printf("},\n \"configurations\": [");
  const char* separator = "";
  for (const Configuration& c : kConfigurations) {
    if (!c.has_groups()) continue;
    for (const char* dtype : kDtypes) {
      if (!c.takes(dtype_of(dtype), true)) continue;
      std::printf("%s\n  {\"name\": \"%s\", \"dtype\": \"%s\", \"units\": %d, \"rows\": %d}",
                  separator, name_of(c).c_str(), dtype, c.units, c.rows);
      separator = ",";
    }
  }
  std::puts("]}");
}

class Answers {
 public:
  Answers() : at_once_(kConfigurations.size()) { estimate_groups(); }

  void answer(const std::string& line) {
    std::istringstream words(line);
    std::string word, name, dtype;
    words >> word;
    if (word == "multiprocessors") {
      words >> device_.multiprocessors;
      estimate_groups();
    } else if (word == "constants") {
      for (const Constant& c : kConstants) words >> times_.*c.place;
    } else if (word == "at_once") {
      int groups = 0;
      words >> name >> dtype >> groups;
      for (const Choice& c : configurations())
        if (name == name_of(c) && kConfigurations[c.configuration].takes(dtype_of(dtype), true))
          at_once_[c.configuration] = groups;
    } else if (word == "step") {
      words >> name;
      std::printf("%.17g\n", step(name, problem(words)));
    } else if (word == "choose") {
      std::puts(name_of(choose(problem(words), device_)).c_str());
    }
    if (!words || word.empty()) throw std::invalid_argument("not understood: " + line);
  }

 private:
  void estimate_groups() {
    device_.groups_at_once = nullptr;
    for (const Choice& c : configurations())
      at_once_[c.configuration] = estimate_groups_at_once(c, device_);
    device_.groups_at_once = at_once_.data();
  }
  static Problem problem(std::istream& words) {
    std::string dtype, pass;
    bool tf32 = false;
    int64_t batch = 0, hidden_size = 0;
    words >> dtype >> tf32 >> pass >> batch >> hidden_size;
    return {dtype_of(dtype), pass == "backward", tf32, kLong, batch, hidden_size, 1};
  }
  double step(const std::string& name, const Problem& p) const {
    try {
      const Choice c = choose(p, device_, name);
      return step_time(kConfigurations[c.configuration], p, device_, times_);
    } catch (const std::invalid_argument&) {
      return std::numeric_limits<double>::quiet_NaN();
    }
  }

  std::vector<int> at_once_;
  Device device_{90, 132, 227 << 10, 228 << 10, 65536};
  StepTimes times_;
};

}  // namespace

int main(int count, char** words) {
  if (count > 1 && std::string(words[1]) == "list") {
    list();
    return 0;
  }
  try {
    Answers answers;
    for (std::string line; std::getline(std::cin, line);) answers.answer(line);
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "estimate: %s\n", e.what());
    return 1;
  }
}
