// The GPUs of this process, and what each can run.
#pragma once

#include "cuda/guard.h"

namespace fastrnn::cuda {

// Made at first use, and kept.
Guard& guard_at(int index);

}  // namespace fastrnn::cuda
