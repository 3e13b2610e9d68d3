// What the driver says about a device and the kernels: which run, and how many groups at a time.
#pragma once

#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

// Makes a device current for the kernels' own runtime, which is not torch's.
cudaError_t make_current(int index);

// Makes a device current, and describes it, with the groups of each configuration that run at a
// time. An error if it runs no machine code of this build; the capability is set even then, if the
// driver reports it.
cudaError_t describe(int index, Device* device, std::vector<int>* groups, std::string* name);

// Groups of this configuration that run at a time on the current device. 0: it holds none.
int groups_at_once(const Choice& choice, const Device& device);

}  // namespace fastrnn::cuda
