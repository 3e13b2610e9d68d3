// What choose() goes by on an H200, as a program for benchmarks/gpu/fit.py.
//
//   estimate list    the rows of configurations.h, as lines of JSON
//   estimate         reads lines, and answers each call by a line of JSON: what choose() takes, and
//                    nanoseconds of a step of all that can serve it
//
//     at_once NAME DTYPE GROUPS    that run at a time, of a configuration
//     DTYPE TF32 PASS B H          a call of one layer and direction, of so many steps that loading
//                                  w_hh is nothing beside them
#include <cstdio>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "cuda/choose.h"
#include "cuda/times.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

constexpr const char* kDtypes[] = {"float32", "float64", "bfloat16", "float16"};
Device device{90, 132, 227 << 10, 228 << 10, 65536};

Dtype dtype_of(const std::string& name) {
  for (size_t i = 0; i < std::size(kDtypes); ++i)
    if (name == kDtypes[i]) return static_cast<Dtype>(i);
  throw std::invalid_argument("expected a dtype, got " + name);
}

void list() {
  for (const Choice& choice : configurations()) {
    const Configuration& c = kConfigurations[choice.configuration];
    std::string dtypes;
    for (const char* dtype : kDtypes)
      if (c.takes(dtype_of(dtype), true))
        dtypes += std::string(dtypes.empty() ? "" : ", ") + '"' + dtype + '"';
    std::printf(
        "{\"name\": \"%s\", \"dtypes\": [%s], \"units\": %d, \"rows\": %d, \"alone\": %d, "
        "\"full\": %d, \"at_once\": %d}\n",
        name_of(c).c_str(), dtypes.c_str(), c.units, c.rows, times_of(c).alone, times_of(c).full,
        estimate_groups_at_once(choice, device));
  }
}

void answer(const Problem& p) {
  std::printf("{\"chosen\": \"%s\", \"ns\": {", name_of(choose(p, device)).c_str());
  const char* separator = "";
  for (const Configuration& c : kConfigurations) {
    if (!choice_of(c, p, device)) continue;
    std::printf("%s\"%s\": %.17g", separator, name_of(c).c_str(), step_time(c, p, device));
    separator = ", ";
  }
  std::puts("}}");
}

void read(const std::string& line, std::vector<int>& groups_at_once) {
  std::istringstream words(line);
  std::string word, name, pass;
  words >> word;
  if (word == "at_once") {
    int groups = 0;
    words >> name >> word >> groups;
    for (const Choice& c : configurations())
      if (name == name_of(c) && kConfigurations[c.configuration].takes(dtype_of(word), true))
        groups_at_once[c.configuration] = groups;
  } else {
    bool tf32 = false;
    int64_t batch = 0, hidden_size = 0;
    words >> tf32 >> pass >> batch >> hidden_size;
    constexpr int64_t kSteps = 1 << 30;
    answer({dtype_of(word), pass == "backward", tf32, kSteps, batch, hidden_size, 1});
  }
  if (!words) throw std::invalid_argument("not understood: " + line);
}

}  // namespace

int main(int count, char** words) {
  if (count > 1 && std::string(words[1]) == "list") {
    list();
    return 0;
  }
  std::vector<int> groups_at_once(kConfigurations.size());
  for (const Choice& c : configurations())
    groups_at_once[c.configuration] = estimate_groups_at_once(c, device);
  device.groups_at_once = groups_at_once.data();
  try {
    for (std::string line; std::getline(std::cin, line);) read(line, groups_at_once);
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "estimate: %s\n", e.what());
    return 1;
  }
}
