// How much of a kernel the current device holds at a time, by its driver.
#pragma once

#include "cuda/choose.h"

namespace fastrnn::cuda {

// Groups of this configuration that run at a time. 0: the device holds none.
int groups_at_once(const Choice& choice, const Device& device);

}  // namespace fastrnn::cuda
