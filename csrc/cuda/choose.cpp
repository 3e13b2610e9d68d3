#include "cuda/choose.h"
namespace fastrnn::cuda {
Choice choose(const Problem&, const Device&, const std::string&) {
  return {Kernel::kStep, 0, 0, 0, 0, 0, 0};
}
bool can_launch(const Choice&, const Device&) { return true; }
const char* name_of(Kernel) { return "step"; }
}  // namespace fastrnn::cuda
