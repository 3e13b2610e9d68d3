// Which calls are so small that the recurrence's launch computes igates too.
#pragma once

#include "cuda/choose.h"

namespace fastrnn::cuda {

// How many features of the input a configuration's group takes; 0: igates come from elsewhere. It
// holds w_ih in two parts as large as w_hh, which registers allow with few units.
constexpr int most_features(const Configuration& c) {
  return c.blocks == 1 && c.units <= 64 ? 2 * c.units : 0;
}

// Whether that takes no longer than a launch of a product: 2 to 2.5 us in a captured graph, and the
// wait for it; without one more, of the host's time. Clocks are estimates, which nobody has
// measured: kWait until w_ih and x are there; a step's products, and what does not go on meanwhile.
// At 1.7 GHz the most is 3 us: 28 steps of 8 rows in 16 bits, or of a row in float32, of 64 units.
inline bool computes_igates(const Choice& choice, int64_t seq_len, int64_t batch,
                            int64_t input_size, int num_directions, int multiprocessors) {
  constexpr int64_t kStep = 60, kWait = 1500, kMost = 5000;
  const Configuration& c = kConfigurations[choice.configuration];
  if (input_size > most_features(c)) return false;
  const int64_t products = c.arithmetic == Arithmetic::kFloat32 ? 80 : 500,  // of a clock
      parts = input_size > c.units ? 2 : 1,
                step = kStep + parts * c.rows * c.units * c.units / products,
                groups = (batch + c.rows - 1) / c.rows * num_directions,
                turns = (groups + multiprocessors - 1) / multiprocessors;
  return seq_len <= kMost && turns * (kWait + seq_len * step) <= kMost;
}

}  // namespace fastrnn::cuda
