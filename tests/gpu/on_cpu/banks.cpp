#include "banks.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <vector>

#include "cuda_on_cpu.h"

namespace fastrnn::cuda::banks {
namespace {

constexpr int kBanks = 32, kWord = 4;

struct Place {
  const char* function;
  unsigned line, column;
  Access access;
  unsigned warp;
  auto operator<=>(const Place&) const = default;
};
struct Accesses {
  size_t of_lane[32] = {};
  std::vector<Lanes> all;
};
std::map<Place, Accesses> noted;

std::string name_of(const Place& place) {
  std::string_view name = place.function;  // "void ...::put(...) const [with ...]"
  name = name.substr(0, name.find('('));
  name = name.substr(name.rfind(':') + 1);
  constexpr const char* kNames[] = {" load", " matrices", " store", " copy"};
  return std::string(name) + kNames[static_cast<int>(place.access)];
}

}  // namespace

int wavefronts(const Lanes& lanes, Access access) {
  bool shared = access == Access::kLoad && lanes.bytes == 16;
  for (int l = 0; l < 32; l += 2) shared &= lanes.address[l] == lanes.address[l + 1];
  const int together = std::min(32, (shared ? 256 : 128) / lanes.bytes);
  int sum = 0;
  for (int first = 0; first < 32; first += together) {
    std::set<uintptr_t> words[kBanks];
    for (int l = first; l < first + together; ++l) {
      const uintptr_t at = lanes.address[l];
      for (uintptr_t word = at / kWord; at != 0 && word * kWord < at + lanes.bytes; ++word)
        words[word % kBanks].insert(word);
    }
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    sum += static_cast<int>(most);
  }
  return sum;
}

void start() {
  noted.clear();
  counting = true;
}

std::map<std::string, Count> stop() {
  counting = false;
  std::map<std::string, Count> counts;
  for (const auto& [place, accesses] : noted) {
    Count& count = counts[name_of(place)];
    for (size_t n : accesses.of_lane)
      if (n != 0 && n != accesses.all.size())
        throw std::logic_error("lanes differ in " + name_of(place));
    for (const Lanes& lanes : accesses.all) {
      ++count.instructions;
      count.wavefronts += wavefronts(lanes, place.access);
    }
  }
  return counts;
}

void record(Access access, const void* p, int bytes, const std::source_location& where) {
  if (blockIdx.x != 0 || blockIdx.y != 0) return;
  const unsigned lane = threadIdx.x % 32;
  Accesses& own =
      noted[{where.function_name(), where.line(), where.column(), access, threadIdx.x / 32}];
  const size_t n = own.of_lane[lane]++;
  if (n == own.all.size()) own.all.emplace_back();
  own.all[n].bytes = bytes;
  own.all[n].address[lane] = reinterpret_cast<uintptr_t>(p);
}

}  // namespace fastrnn::cuda::banks
