// How long a step of each configuration takes, by which choose() compares them. Kept apart from
// configurations.h, from which the kernels are compiled: new times do not change them.
#pragma once

#include <array>

#include "cuda/configurations.h"

namespace fastrnn::cuda {

// Nanoseconds of a step, of one group alone and of all that run at once (estimate_groups_at_once,
// less where the driver fits fewer clusters).
struct Times {
  int units, rows, blocks;  // of the configuration
  int alone, full;
};

// Of the configurations with groups, in their order. Measured on an H200, the mean of forward and
// backward, and of float16 and bfloat16 (benchmarks/gpu/fit.py compares). On other devices they
// serve as relative costs.
inline constexpr auto kTimes = std::to_array<Times>({
    // units rows blocks alone full
    {64, 1, 1, 153, 188},       // vector, exact float32
    {64, 2, 1, 202, 274},       // vector, exact float32
    {64, 4, 1, 305, 427},       // vector, exact float32
    {128, 1, 1, 243, 242},      // vector, exact float32
    {128, 2, 1, 355, 355},      // vector, exact float32
    {128, 4, 1, 598, 620},      // vector, exact float32
    {192, 1, 1, 382, 382},      // vector, exact float32
    {192, 2, 1, 586, 589},      // vector, exact float32
    {64, 8, 1, 313, 445},       // tile, TF32
    {128, 8, 1, 569, 572},      // tile, TF32
    {160, 8, 1, 721, 799},      // tile, TF32
    {64, 8, 1, 204, 249},       // tile, 16 bits
    {64, 16, 1, 286, 408},      // tile, 16 bits
    {128, 8, 1, 325, 331},      // tile, 16 bits
    {128, 16, 1, 524, 763},     // tile, 16 bits
    {192, 8, 1, 505, 504},      // tile, 16 bits
    {256, 8, 1, 551, 554},      // tile, 16 bits
    {256, 1, 2, 473, 479},      // cluster, exact float32
    {256, 2, 2, 653, 661},      // cluster, exact float32
    {256, 4, 2, 1115, 1124},    // cluster, exact float32
    {384, 1, 4, 578, 618},      // cluster, exact float32
    {384, 2, 4, 864, 896},      // cluster, exact float32
    {384, 4, 4, 1405, 1462},    // cluster, exact float32
    {512, 1, 8, 563, 592},      // cluster, exact float32
    {512, 2, 8, 863, 959},      // cluster, exact float32
    {512, 4, 8, 1416, 1551},    // cluster, exact float32
    {256, 8, 2, 1040, 986},     // cluster, TF32
    {384, 8, 4, 1391, 1354},    // cluster, TF32
    {512, 8, 8, 1806, 1882},    // cluster, TF32
    {640, 8, 8, 2260, 2350},    // cluster, TF32; not measured: as many more products
    {384, 8, 4, 728, 784},      // cluster, 16 bits
    {384, 16, 4, 1348, 1321},   // cluster, 16 bits
    {512, 8, 8, 972, 1118},     // cluster, 16 bits
    {512, 8, 4, 1039, 1109},    // cluster, 16 bits
    {512, 16, 4, 2006, 1946},   // cluster, 16 bits
    {768, 8, 8, 1480, 1655},    // cluster, 16 bits
    {768, 16, 8, 2641, 2806},   // cluster, 16 bits
    {1024, 8, 8, 2474, 2583},   // cluster, 16 bits
    {1024, 16, 8, 4660, 4816},  // cluster, 16 bits
});

constexpr int kWithoutGroups = static_cast<int>(kConfigurations.size() - kTimes.size());
static_assert([] {
  for (size_t i = 0; i < kConfigurations.size(); ++i) {
    const Configuration& c = kConfigurations[i];
    if (c.has_groups() != (i >= kWithoutGroups)) return false;
    if (!c.has_groups()) continue;
    const Times& t = kTimes[i - kWithoutGroups];
    if (t.units != c.units || t.rows != c.rows || t.blocks != c.blocks) return false;
  }
  return true;
}());

// The times of a configuration with groups.
constexpr const Times& times_of(const Configuration& c) { return kTimes[c.place - kWithoutGroups]; }

}  // namespace fastrnn::cuda
