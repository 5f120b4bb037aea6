// The loop's own kernels, of one thread each.
#pragma once

#include <cuda_runtime_api.h>

#include "loop_rows.h"

namespace fastdiff {

// The one argument of each kernel.
struct LoopKernelArgument {
  LoopMemory memory;
  cudaGraphConditionalHandle condition;
  bool has_condition;  // else what a kernel finds out is not for a node
};

// Kernels as the runtime takes them. Begin and advance set the condition of the loop, decide that of the network.
const void* begin_kernel();
const void* decide_kernel();
const void* advance_kernel();

}  // namespace fastdiff
