#include "captured.h"

#include <vector>

#include "failure.h"

namespace fastdiff {

namespace {

const char* advice_on(cudaGraphNodeType type) {
  switch (type) {
    case cudaGraphNodeTypeMemAlloc:
    case cudaGraphNodeTypeMemFree:
      return "allocate before the capture; PyTorch's allocator backend:cudaMallocAsync allocates within graphs, use "
             "its native one";
    case cudaGraphNodeTypeWaitEvent:
    case cudaGraphNodeTypeEventRecord:
    case cudaGraphNodeTypeExtSemaphoreSignal:
    case cudaGraphNodeTypeExtSemaphoreWait:
      return "it meets work outside of the graph, as NCCL's collectives do: capture on one stream and its forks alone";
    case cudaGraphNodeTypeHost: return "it calls back to the host: leave such calls out of the capture";
    case cudaGraphNodeTypeConditional: return "a captured graph becomes a child, which holds no conditional node";
    default: return "leave it out of the capture";
  }
}

[[noreturn]] void refuse(const std::string& place, const char* what, const std::string& advice) {
  throw Failure(LOOP_REFUSED, place + " is " + what + ", which the body of a loop does not take: " + advice);
}

void check_kernel(const std::string& place, cudaGraphNode_t node, int device) {
  cudaLaunchAttributeValue value = {};
  FD_CUDA(cudaGraphKernelNodeGetAttribute, node, cudaLaunchAttributeCooperative, &value);
  if (value.cooperative == 0) return;
  int served = 0;
  FD_CUDA(cudaDeviceGetAttribute, &served, cudaDevAttrMpsEnabled, device);
  if (served != 0)
    refuse(place, "a cooperative kernel",
           "not where the multi-process service (MPS) runs; stop it, or replay the rows");
}

void check_copy(const std::string& place, cudaGraphNode_t node) {
  cudaMemcpy3DParms copy = {};
  FD_CUDA(cudaGraphMemcpyNodeGetParams, node, &copy);
  if (copy.srcArray != nullptr || copy.dstArray != nullptr)
    refuse(place, "a copy of a CUDA array", "copy plain device memory");
  for (const void* end : {copy.srcPtr.ptr, copy.dstPtr.ptr}) {
    cudaPointerAttributes attributes = {};
    FD_CUDA(cudaPointerGetAttributes, &attributes, end);
    if (attributes.type == cudaMemoryTypeUnregistered)
      refuse(place, "a copy of pageable host memory", "keep the data on the GPU, or in pinned memory");
  }
}

// Nodes that do something, those of child graphs included.
size_t check_nodes(const std::string& name, cudaGraph_t graph, int device) {
  size_t count = 0, working = 0;
  FD_CUDA(cudaGraphGetNodes, graph, nullptr, &count);
  std::vector<cudaGraphNode_t> nodes(count);
  if (count > 0) FD_CUDA(cudaGraphGetNodes, graph, nodes.data(), &count);
  nodes.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const std::string place = name + ", node " + std::to_string(i + 1) + " of " + std::to_string(count);
    cudaGraphNodeType type = cudaGraphNodeTypeCount;
    FD_CUDA(cudaGraphNodeGetType, nodes[i], &type);
    switch (type) {
      case cudaGraphNodeTypeEmpty: continue;
      case cudaGraphNodeTypeKernel: check_kernel(place, nodes[i], device); break;
      case cudaGraphNodeTypeMemcpy: check_copy(place, nodes[i]); break;
      case cudaGraphNodeTypeMemset: break;
      case cudaGraphNodeTypeGraph: {
        cudaGraph_t child = nullptr;
        FD_CUDA(cudaGraphChildGraphNodeGetGraph, nodes[i], &child);
        working += check_nodes(place + ", a child graph", child, device);
        continue;
      }
      default: refuse(place, name_of(type), advice_on(type));
    }
    ++working;
  }
  return working;
}

}  // namespace

const char* name_of(cudaGraphNodeType type) {
  switch (type) {
    case cudaGraphNodeTypeKernel: return "a kernel";
    case cudaGraphNodeTypeMemcpy: return "a copy";
    case cudaGraphNodeTypeMemset: return "a memset";
    case cudaGraphNodeTypeHost: return "a host function";
    case cudaGraphNodeTypeGraph: return "a child graph";
    case cudaGraphNodeTypeEmpty: return "an empty node";
    case cudaGraphNodeTypeWaitEvent: return "a wait for an external event";
    case cudaGraphNodeTypeEventRecord: return "a record of an external event";
    case cudaGraphNodeTypeExtSemaphoreSignal: return "a signal of an external semaphore";
    case cudaGraphNodeTypeExtSemaphoreWait: return "a wait for an external semaphore";
    case cudaGraphNodeTypeMemAlloc: return "an allocation of memory";
    case cudaGraphNodeTypeMemFree: return "a release of memory";
    case cudaGraphNodeTypeConditional: return "a conditional node";
    default: return "a node of a type unknown here";
  }
}

void check_captured(const std::string& name, cudaGraph_t graph, int device) {
  if (check_nodes(name, graph, device) == 0)
    throw Failure(LOOP_REFUSED, name +
                                    " is empty, and an empty body of a loop hangs before driver 570: nothing was "
                                    "launched on the stream while it was captured");
}

}  // namespace fastdiff
