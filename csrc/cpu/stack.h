// A whole call on the CPU: all layers and directions, shared out to threads.
#pragma once

#include "cpu/kernels.h"

namespace fastrnn::cpu {

// Threads that a call of these sizes is worth, at most `available`.
int worthwhile_threads(const Stack& stack, int available);

void run_forward(const Forward& call, const Kernels& kernels, int threads);
void run_backward(const Backward& call, const Kernels& kernels, int threads);

}  // namespace fastrnn::cpu
