#include "loop_kernels.h"

namespace fastdiff {

namespace {

__device__ void tell(const LoopKernelArgument& argument, bool value) {
  if (argument.has_condition) cudaGraphSetConditional(argument.condition, value ? 1 : 0);
}

__global__ void begin(LoopKernelArgument argument) { tell(argument, begin_rows(argument.memory)); }
__global__ void decide(LoopKernelArgument argument) { tell(argument, row_evaluates(argument.memory)); }
__global__ void advance(LoopKernelArgument argument) { tell(argument, advance_row(argument.memory)); }

}  // namespace

const void* begin_kernel() { return reinterpret_cast<const void*>(begin); }
const void* decide_kernel() { return reinterpret_cast<const void*>(decide); }
const void* advance_kernel() { return reinterpret_cast<const void*>(advance); }

}  // namespace fastdiff
