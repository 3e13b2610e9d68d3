// What has been proved on a GPU: that GPU's architecture, and the hash of the kernels' sources
// (cuda_build.py, source_hash) that passed every check there. The guard does not check those.
#pragma once

#include <algorithm>
#include <array>
#include <string_view>

namespace fastrnn::cuda {

struct Proven {
  int capability;  // 90 for sm_90
  std::string_view kernels;
};
inline constexpr std::array<Proven, 0> kProven{};

inline bool is_proven(int capability, std::string_view kernels) {
  return std::any_of(kProven.begin(), kProven.end(), [&](const Proven& p) {
    return p.capability == capability && p.kernels == kernels;
  });
}

}  // namespace fastrnn::cuda
