// Graphs of the fake runtime: made, looked into, instantiated, launched.
#include <algorithm>
#include <cstring>
#include <utility>

#include "fake_state.h"

using fake::current_device;
using fake::Exec;
using fake::Graph;
using fake::Node;
using fake::Owner;
using fake::state;

namespace {

Graph* known(cudaGraph_t graph) {
  Graph* const found = reinterpret_cast<Graph*>(graph);
  return state().graphs.count(found) == 1 ? found : nullptr;
}

Node* known(cudaGraphNode_t node) {
  Node* const found = reinterpret_cast<Node*>(node);
  return state().nodes.count(found) == 1 ? found : nullptr;
}

cudaError_t remembered(cudaError_t error) { return state().last = error; }

// The dependencies, where all are nodes of the graph.
bool depend(const Graph& graph, const cudaGraphNode_t* dependencies, size_t count, std::vector<Node*>* after) {
  for (size_t i = 0; i < count; ++i) {
    Node* const node = known(dependencies[i]);
    if (node == nullptr || node->graph != &graph) return false;
    after->push_back(node);
  }
  return true;
}

bool is_kernel(const void* function) {
  return function != nullptr && static_cast<const fake::Kernel*>(function)->magic == fake::Kernel::MAGIC;
}

void set_kernel(Node& node, const void* function, void** arguments) {
  node.kernel = static_cast<const fake::Kernel*>(function);
  const std::byte* first = static_cast<const std::byte*>(arguments[0]);
  node.argument.assign(first, first + node.kernel->argument_bytes);
}

bool is_pinned_or_device(const void* place) {
  const auto lies_in = [&](const void* first, size_t bytes) {
    return place >= first && place < static_cast<const std::byte*>(first) + bytes;
  };
  for (const auto& [at, memory] : state().host)
    if (lies_in(at, memory.bytes) || lies_in(memory.device_view, memory.bytes)) return true;
  for (const auto& [at, bytes] : state().registered)
    if (lies_in(at, bytes)) return true;
  return false;
}

bool is_taken_by_bodies(const Node& node) {
  switch (node.type) {
    case cudaGraphNodeTypeMemcpy:
      return !node.is_array && is_pinned_or_device(node.to) && is_pinned_or_device(node.from);
    case cudaGraphNodeTypeKernel: return !node.cooperative || state().mps == 0;
    case cudaGraphNodeTypeMemset:
    case cudaGraphNodeTypeEmpty:
    case cudaGraphNodeTypeGraph:
    case cudaGraphNodeTypeConditional: return true;
    default: return false;
  }
}

struct Complaint {
  const Node* node;
  cudaGraphInstantiateResult result;
};

// What keeps a graph from being instantiated.
std::optional<Complaint> complaint_about(const Graph& graph, bool in_body, bool in_child, int device) {
  for (const auto& [handle, used] : graph.handles)
    if (!used) return Complaint{nullptr, cudaGraphInstantiateError};
  for (const auto& node : graph.nodes) {
    if (node->device != device) return Complaint{node.get(), cudaGraphInstantiateMultipleDevicesNotSupported};
    if (in_body && !is_taken_by_bodies(*node)) return Complaint{node.get(), cudaGraphInstantiateError};
    const bool conditional = node->type == cudaGraphNodeTypeConditional;
    if (conditional && in_child) return Complaint{node.get(), cudaGraphInstantiateError};
    if (node->inner)
      if (const auto found = complaint_about(*node->inner, in_body || conditional, in_child || !conditional, device))
        return found;
  }
  return std::nullopt;
}

bool is_conditional(const Node& node) { return node.type == cudaGraphNodeTypeConditional; }

void collect_conditions(const Graph& graph, Exec* exec) {
  for (const auto& [handle, used] : graph.handles) exec->conditions[handle];
  for (const auto& node : graph.nodes)
    if (node->inner) collect_conditions(*node->inner, exec);
}

}  // namespace

// Begins each function: the lock, and what it returns at once.
#define ENTER()                                               \
  std::unique_lock<std::recursive_mutex> hold(state().mutex); \
  if (const cudaError_t wrong = state().enter(__func__)) return wrong

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  ENTER();
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  ENTER();
  if (device < 0 || device >= state().devices) return remembered(cudaErrorInvalidDevice);
  current_device() = device;
  return cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned int flags) {
  ENTER();
  if (flags != 0) return remembered(cudaErrorInvalidValue);
  *graph = reinterpret_cast<cudaGraph_t>(new Graph(Owner::Caller));
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  std::unique_lock<std::recursive_mutex> hold(state().mutex);
  const cudaError_t wrong = state().enter(__func__);
  Graph* const g = known(graph);
  if (g == nullptr || g->owner != Owner::Caller) {
    state().violate("cudaGraphDestroy of a graph that is not the caller's");
    return remembered(cudaErrorInvalidValue);
  }
  if (g->instances > 0) state().violate("cudaGraphDestroy before its cudaGraphExecDestroy");
  delete g;
  return wrong;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                                   size_t count, const cudaKernelNodeParams* params) {
  ENTER();
  Graph* const g = known(graph);
  std::vector<Node*> after;
  if (g == nullptr || !depend(*g, dependencies, count, &after)) return remembered(cudaErrorInvalidValue);
  if (!is_kernel(params->func)) return remembered(cudaErrorInvalidDeviceFunction);
  const unsigned threads = params->gridDim.x * params->gridDim.y * params->gridDim.z * params->blockDim.x *
                           params->blockDim.y * params->blockDim.z;
  if (threads == 0) return remembered(cudaErrorInvalidConfiguration);
  Node& added = fake::add(*g, cudaGraphNodeTypeKernel);
  added.after = after;
  added.device = current_device();
  set_kernel(added, params->func, params->kernelParams);
  *node = reinterpret_cast<cudaGraphNode_t>(&added);
  return cudaSuccess;
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                                       size_t count, cudaGraph_t child) {
  ENTER();
  Graph *const g = known(graph), *const inner = known(child);
  std::vector<Node*> after;
  if (g == nullptr || inner == nullptr || g == inner || !depend(*g, dependencies, count, &after))
    return remembered(cudaErrorInvalidValue);
  const auto cannot_be_cloned = [](const Node& n) {
    return is_conditional(n) || n.type == cudaGraphNodeTypeMemAlloc || n.type == cudaGraphNodeTypeMemFree;
  };
  if (fake::find(*inner, cannot_be_cloned) != nullptr) return remembered(cudaErrorNotSupported);
  Node& added = fake::add(*g, cudaGraphNodeTypeGraph);
  added.after = after;
  added.device = current_device();
  added.inner = fake::copy_of(*inner, Owner::Node);
  *node = reinterpret_cast<cudaGraphNode_t>(&added);
  return cudaSuccess;
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph, unsigned int value,
                                             unsigned int flags) {
  ENTER();
  Graph* const g = known(graph);
  if (state().driver < 12030) return remembered(cudaErrorCallRequiresNewerDriver);
  // Without the flag there is no value to begin with.
  if (g == nullptr || value != 0 || flags != 0) return remembered(cudaErrorInvalidValue);
  *handle = state().next_handle++;
  g->handles[*handle] = false;
  return cudaSuccess;
}

#if CUDART_VERSION >= 13000
cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                             const cudaGraphEdgeData*, size_t count, cudaGraphNodeParams* params) {
#else
cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                             size_t count, cudaGraphNodeParams* params) {
#endif
  ENTER();
  Graph* const g = known(graph);
  std::vector<Node*> after;
  if (g == nullptr || !depend(*g, dependencies, count, &after) || params->type != cudaGraphNodeTypeConditional)
    return remembered(cudaErrorInvalidValue);
  cudaConditionalNodeParams& wanted = params->conditional;
  if (state().driver < (wanted.type == cudaGraphCondTypeWhile ? 12040 : 12030))
    return remembered(cudaErrorCallRequiresNewerDriver);
  // The handle is of this graph, and of one node.
  const auto handle = g->handles.find(wanted.handle);
  if (wanted.size != 1 || wanted.type > cudaGraphCondTypeWhile || handle == g->handles.end() || handle->second)
    return remembered(cudaErrorInvalidValue);
  handle->second = true;
  Node& added = fake::add(*g, cudaGraphNodeTypeConditional);
  added.after = after;
  added.device = current_device();
  added.kind = wanted.type;
  added.condition = wanted.handle;
  added.inner = std::make_unique<Graph>(Owner::Node);
  added.inner_handle = reinterpret_cast<cudaGraph_t>(added.inner.get());
  wanted.phGraph_out = &added.inner_handle;
  *node = reinterpret_cast<cudaGraphNode_t>(&added);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  ENTER();
  const Graph* const g = known(graph);
  if (g == nullptr) return remembered(cudaErrorInvalidValue);
  if (nodes != nullptr)
    for (size_t i = 0; i < std::min(*count, g->nodes.size()); ++i)
      nodes[i] = reinterpret_cast<cudaGraphNode_t>(g->nodes[i].get());
  *count = nodes == nullptr ? g->nodes.size() : std::min(*count, g->nodes.size());
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  ENTER();
  const Node* const n = known(node);
  if (n == nullptr) return remembered(cudaErrorInvalidValue);
  *type = n->type;
  return cudaSuccess;
}

cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
  ENTER();
  const Node* const n = known(node);
  if (n == nullptr || n->type != cudaGraphNodeTypeGraph) return remembered(cudaErrorInvalidValue);
  *graph = reinterpret_cast<cudaGraph_t>(n->inner.get());
  return cudaSuccess;
}

cudaError_t cudaGraphKernelNodeGetAttribute(cudaGraphNode_t node, cudaKernelNodeAttrID attribute,
                                            cudaKernelNodeAttrValue* value) {
  ENTER();
  const Node* const n = known(node);
  if (n == nullptr || n->type != cudaGraphNodeTypeKernel || attribute != cudaLaunchAttributeCooperative)
    return remembered(cudaErrorInvalidValue);
  value->cooperative = n->cooperative ? 1 : 0;
  return cudaSuccess;
}

cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t node, cudaMemcpy3DParms* params) {
  ENTER();
  const Node* const n = known(node);
  if (n == nullptr || n->type != cudaGraphNodeTypeMemcpy) return remembered(cudaErrorInvalidValue);
  *params = {};
  if (n->is_array)
    params->srcArray = reinterpret_cast<cudaArray_t>(const_cast<void*>(n->from));
  else
    params->srcPtr.ptr = const_cast<void*>(n->from);
  params->dstPtr.ptr = n->to;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* place) {
  ENTER();
  *attributes = {};
  attributes->type = is_pinned_or_device(place) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t* exec, cudaGraph_t graph,
                                           cudaGraphInstantiateParams* params) {
  ENTER();
  Graph* const g = known(graph);
  params->result_out = cudaGraphInstantiateError;
  if (g == nullptr) return remembered(cudaErrorInvalidValue);
  const bool conditional = fake::find(*g, is_conditional) != nullptr;
  if (conditional && g->instances > 0) return remembered(cudaErrorInvalidValue);
  if (const auto complaint = complaint_about(*g, false, false, current_device())) {
    params->errNode_out = reinterpret_cast<cudaGraphNode_t>(const_cast<Node*>(complaint->node));
    params->result_out = complaint->result;
    return remembered(cudaErrorInvalidValue);
  }
  auto made = std::make_unique<Exec>();
  made->graph = fake::copy_of(*g, Owner::Exec);
  made->source = g;
  made->device = current_device();
  collect_conditions(*made->graph, made.get());
  ++g->instances;
  state().execs.insert(made.get());
  params->result_out = cudaGraphInstantiateSuccess;
  *exec = reinterpret_cast<cudaGraphExec_t>(made.release());
  return cudaSuccess;
}

static Exec* known_exec(cudaGraphExec_t exec) {
  Exec* const found = reinterpret_cast<Exec*>(exec);
  return state().execs.count(found) == 1 ? found : nullptr;
}

// The device of a stream, or -1.
static int device_of(cudaStream_t stream) {
  if (stream == nullptr) return current_device();
  fake::Stream* const found = reinterpret_cast<fake::Stream*>(stream);
  return state().streams.count(found) == 1 ? found->device : -1;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  ENTER();
  const Exec* const e = known_exec(exec);
  if (e == nullptr) return remembered(cudaErrorInvalidValue);
  return e->device == device_of(stream) ? cudaSuccess : remembered(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ENTER();
  Exec* const e = known_exec(exec);
  if (e == nullptr) return remembered(cudaErrorInvalidValue);
  if (e->device != device_of(stream)) return remembered(cudaErrorInvalidResourceHandle);
  ++e->running;
  hold.unlock();
  state().submit([e] {
    fake::execute(*e);
    const std::lock_guard<std::recursive_mutex> again(state().mutex);
    --e->running;
  });
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  std::unique_lock<std::recursive_mutex> hold(state().mutex);
  const cudaError_t wrong = state().enter(__func__);
  Exec* const e = known_exec(exec);
  if (e == nullptr) {
    state().violate("cudaGraphExecDestroy of what is none");
    return remembered(cudaErrorInvalidValue);
  }
  if (e->running > 0) {
    state().violate("cudaGraphExecDestroy while it runs");
    return remembered(cudaErrorInvalidValue);
  }
  if (state().graphs.count(e->source) == 1) --e->source->instances;
  state().execs.erase(e);
  delete e;
  return wrong;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t stream) {
  ENTER();
  if (!is_kernel(function)) return remembered(cudaErrorInvalidDeviceFunction);
  if (grid.x * block.x == 0) return remembered(cudaErrorInvalidConfiguration);
  const int device = device_of(stream);
  if (device < 0) return remembered(cudaErrorInvalidResourceHandle);
  auto exec = std::make_shared<Exec>();
  exec->graph = std::make_unique<Graph>(Owner::Exec);
  set_kernel(fake::add(*exec->graph, cudaGraphNodeTypeKernel), function, arguments);
  hold.unlock();
  state().submit([exec] { fake::execute(*exec); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  ENTER();
  auto* const made = new fake::Event{current_device(), 0};
  state().events.insert(made);
  *event = reinterpret_cast<cudaEvent_t>(made);
  return cudaSuccess;
}

static fake::Event* known_event(cudaEvent_t event) {
  fake::Event* const found = reinterpret_cast<fake::Event*>(event);
  return state().events.count(found) == 1 ? found : nullptr;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  ENTER();
  fake::Event* const e = known_event(event);
  if (e == nullptr || e->device != device_of(stream)) return remembered(cudaErrorInvalidResourceHandle);
  ++e->pending;
  hold.unlock();
  state().submit([e] {
    const std::lock_guard<std::recursive_mutex> again(state().mutex);
    --e->pending;
    state().changed.notify_all();
  });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  ENTER();
  const fake::Event* const e = known_event(event);
  if (e == nullptr) return remembered(cudaErrorInvalidResourceHandle);
  return e->pending == 0 ? cudaSuccess : remembered(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  std::unique_lock<std::recursive_mutex> hold(state().mutex);
  const cudaError_t wrong = state().enter(__func__);
  fake::Event* const e = known_event(event);
  if (e == nullptr) return remembered(cudaErrorInvalidResourceHandle);
  state().changed.wait(hold, [&] { return e->pending == 0; });
  return wrong != cudaSuccess ? wrong : state().sticky;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  ENTER();
  if (device_of(stream) < 0) return remembered(cudaErrorInvalidResourceHandle);
  *status = state().capturing != 0 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::unique_lock<std::recursive_mutex> hold(state().mutex);
  const cudaError_t wrong = state().enter(__func__);
  if (device_of(stream) < 0) return remembered(cudaErrorInvalidResourceHandle);
  // One thread runs all streams.
  state().changed.wait(hold, [&] { return state().waiting == 0; });
  return wrong != cudaSuccess ? wrong : state().sticky;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  std::unique_lock<std::recursive_mutex> hold(state().mutex);
  const cudaError_t wrong = state().enter(__func__);
  fake::Event* const e = known_event(event);
  if (e == nullptr) {
    state().violate("cudaEventDestroy of what is none");
    return remembered(cudaErrorInvalidResourceHandle);
  }
  if (e->pending > 0) state().violate("cudaEventDestroy of an event that is still to come");
  state().events.erase(e);
  delete e;
  return wrong;
}

}  // extern "C"

FAKE_EXPORT void* fake_graph_new() {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  return new Graph(Owner::Capture);
}

FAKE_EXPORT void fake_graph_free(void* graph) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  delete static_cast<Graph*>(graph);
}

// Behind the node that was added last, as a stream is captured.
static Node& captured(void* graph, cudaGraphNodeType type) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  Graph& g = *static_cast<Graph*>(graph);
  Node* const last = g.nodes.empty() ? nullptr : g.nodes.back().get();
  Node& added = fake::add(g, type);
  if (last != nullptr) added.after.push_back(last);
  return added;
}

namespace {

struct Callback {
  void (*function)(void*);
  void* argument;
};

void run_callback(void** arguments) {
  const Callback& callback = *static_cast<const Callback*>(arguments[0]);
  callback.function(callback.argument);
  if (const cudaError_t fault = std::exchange(state().fault, cudaSuccess)) throw fake::Fault{fault};
}

const fake::Kernel CALLBACK = {fake::Kernel::MAGIC, run_callback, sizeof(Callback)};

}  // namespace

FAKE_EXPORT void fake_add_kernel(void* graph, void (*function)(void*), void* argument, int64_t cooperative,
                                 int64_t device) {
  Node& added = captured(graph, cudaGraphNodeTypeKernel);
  Callback callback = {function, argument};
  void* arguments[] = {&callback};
  set_kernel(added, &CALLBACK, arguments);
  added.cooperative = cooperative != 0;
  added.device = static_cast<int>(device);
}

FAKE_EXPORT void fake_add_copy(void* graph, void* to, const void* from, int64_t bytes, int64_t is_array) {
  Node& added = captured(graph, cudaGraphNodeTypeMemcpy);
  added.to = to;
  added.from = from;
  added.bytes = static_cast<size_t>(bytes);
  added.is_array = is_array != 0;
}

FAKE_EXPORT void fake_add_child(void* graph, void* child) {
  Node& added = captured(graph, cudaGraphNodeTypeGraph);
  added.inner = fake::copy_of(*static_cast<Graph*>(child), Owner::Node);
}

FAKE_EXPORT void fake_add_node(void* graph, int64_t type) {
  Node& added = captured(graph, static_cast<cudaGraphNodeType>(type));
  if (is_conditional(added)) added.inner = std::make_unique<Graph>(Owner::Node);
}
