#include "building.h"

#include "captured.h"
#include "failure.h"
#include "loop_kernels.h"

namespace fastdiff {

namespace {

// Nodes added one behind the other.
class Chain {
 public:
  explicit Chain(cudaGraph_t graph) : graph_(graph) {}

  cudaGraphConditionalHandle condition() {
    // A handle belongs to the graph that the conditional node is added to. A kernel sets it before it is read, at every
    // turn, so that it needs no value to begin with.
    cudaGraphConditionalHandle handle = 0;
    FD_CUDA(cudaGraphConditionalHandleCreate, &handle, graph_, 0, 0);
    return handle;
  }

  void kernel(const void* function, LoopKernelArgument argument) {
    void* arguments[] = {&argument};
    cudaKernelNodeParams params = {};
    params.func = const_cast<void*>(function);
    params.gridDim = params.blockDim = dim3{1, 1, 1};
    params.kernelParams = arguments;
    cudaGraphNode_t node = nullptr;
    FD_CUDA(cudaGraphAddKernelNode, &node, graph_, last(), count(), &params);
    last_ = node;
  }

  void child(cudaGraph_t graph) {
    cudaGraphNode_t node = nullptr;
    FD_CUDA(cudaGraphAddChildGraphNode, &node, graph_, last(), count(), graph);
    last_ = node;
  }

  // Its body, to be filled.
  cudaGraph_t conditional(cudaGraphConditionalNodeType type, cudaGraphConditionalHandle handle) {
    cudaGraphNodeParams params = {};
    params.type = cudaGraphNodeTypeConditional;
    params.conditional.handle = handle;
    params.conditional.type = type;
    params.conditional.size = 1;
    cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
    FD_CUDA(cudaGraphAddNode, &node, graph_, last(), nullptr, count(), &params);
#else
    FD_CUDA(cudaGraphAddNode, &node, graph_, last(), count(), &params);
#endif
    last_ = node;
    return params.conditional.phGraph_out[0];
  }

 private:
  const cudaGraphNode_t* last() const { return last_ == nullptr ? nullptr : &last_; }
  size_t count() const { return last_ == nullptr ? 0 : 1; }

  cudaGraph_t graph_;
  cudaGraphNode_t last_ = nullptr;
};

LoopKernelArgument silent(const LoopMemory& memory) { return {memory, 0, false}; }

// Says what cudaGraphInstantiate alone does not: what was wrong, and with which node.
void instantiate(Executable& executable) {
  cudaGraphInstantiateParams params = {};
  const cudaError_t status = cudaGraphInstantiateWithParams(executable.exec.place(), executable.graph.get(), &params);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  std::string message = described(status, "cudaGraphInstantiateWithParams");
  switch (params.result_out) {
    case cudaGraphInstantiateInvalidStructure: message += "; the graph has a cycle or the like"; break;
    case cudaGraphInstantiateNodeOperationNotSupported: message += "; a node does what is not supported"; break;
    case cudaGraphInstantiateMultipleDevicesNotSupported: message += "; nodes belong to several contexts"; break;
    default: break;
  }
  cudaGraphNodeType type = cudaGraphNodeTypeCount;
  if (params.errNode_out != nullptr && cudaGraphNodeGetType(params.errNode_out, &type) == cudaSuccess)
    message += std::string("; the node is ") + name_of(type);
  throw Failure(status, message);
}

Executable empty_graph() {
  Executable made;
  FD_CUDA(cudaGraphCreate, made.graph.place(), 0);
  return made;
}

}  // namespace

Executable while_graph(const Body& body) {
  Executable made = empty_graph();
  Chain root(made.graph.get());
  const cudaGraphConditionalHandle more = root.condition();
  root.kernel(begin_kernel(), {body.memory, more, true});
  Chain row(root.conditional(cudaGraphCondTypeWhile, more));
  if (body.network != nullptr) {
    if (body.every_row) {
      row.child(body.network);
    } else {
      const cudaGraphConditionalHandle evaluates = row.condition();
      row.kernel(decide_kernel(), {body.memory, evaluates, true});
      Chain(row.conditional(cudaGraphCondTypeIf, evaluates)).child(body.network);
    }
  }
  row.child(body.step);
  row.kernel(advance_kernel(), {body.memory, more, true});
  instantiate(made);
  return made;
}

Executable row_graph(const Body& body, bool evaluates) {
  Executable made = empty_graph();
  Chain row(made.graph.get());
  if (body.network != nullptr && evaluates) row.child(body.network);
  row.child(body.step);
  row.kernel(advance_kernel(), silent(body.memory));
  instantiate(made);
  return made;
}

Executable unrolled_graph(const Body& body, const uint8_t* evaluates, int64_t count) {
  Executable made = empty_graph();
  Chain rows(made.graph.get());
  rows.kernel(begin_kernel(), silent(body.memory));
  for (int64_t i = 0; i < count; ++i) {
    if (body.network != nullptr && (body.every_row || evaluates[i] != 0)) rows.child(body.network);
    rows.child(body.step);
    rows.kernel(advance_kernel(), silent(body.memory));
  }
  instantiate(made);
  return made;
}

void launch_begin(const LoopMemory& memory, cudaStream_t stream) {
  LoopKernelArgument argument = silent(memory);
  void* arguments[] = {&argument};
  FD_CUDA(cudaLaunchKernel, begin_kernel(), dim3{1, 1, 1}, dim3{1, 1, 1}, arguments, 0, stream);
}

}  // namespace fastdiff
