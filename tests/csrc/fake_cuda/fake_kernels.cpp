// The loop's kernels as functions of the host: the same code as csrc/cuda/loop_kernels.cu, over the fake runtime.
#include "fake_runtime.h"
#include "loop_kernels.h"

namespace fastdiff {

namespace {

template <bool (*WORK)(const LoopMemory&)>
void run(void** arguments) {
  const LoopKernelArgument& argument = *static_cast<const LoopKernelArgument*>(arguments[0]);
  const bool value = WORK(argument.memory);
  if (argument.has_condition) fake::set_condition(argument.condition, value);
}

template <bool (*WORK)(const LoopMemory&)>
const void* kernel() {
  static const fake::Kernel made = {fake::Kernel::MAGIC, run<WORK>, sizeof(LoopKernelArgument)};
  return &made;
}

}  // namespace

const void* begin_kernel() { return kernel<begin_rows>(); }
const void* decide_kernel() { return kernel<row_evaluates>(); }
const void* advance_kernel() { return kernel<advance_row>(); }

}  // namespace fastdiff
