#include "fake_state.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace fake {

namespace {

// A loop that does not end is cut off, as a display's watchdog does.
constexpr int64_t MAX_TURNS = 1 << 14;
// Before it, an empty body hangs.
constexpr int64_t DRIVER_570 = 12080;

thread_local Exec* current = nullptr;

bool works(const Node& node) {
  return node.type == cudaGraphNodeTypeKernel || node.type == cudaGraphNodeTypeMemcpy ||
         node.type == cudaGraphNodeTypeMemset;
}

void run(const Graph& graph);

void run_conditional(const Node& node) {
  if (find(*node.inner, works) == nullptr && state().driver < DRIVER_570) throw Fault{cudaErrorLaunchTimeout};
  const auto holds = [&] {
    const auto found = current->conditions.find(node.condition);
    // What a condition is before it was set, nobody knows.
    if (found == current->conditions.end() || !found->second) throw Fault{cudaErrorLaunchFailure};
    return *found->second;
  };
  if (node.kind == cudaGraphCondTypeIf) {
    if (holds()) run(*node.inner);
    return;
  }
  for (int64_t turn = 0; holds(); ++turn) {
    if (turn == MAX_TURNS) throw Fault{cudaErrorLaunchTimeout};
    run(*node.inner);
  }
}

void run(const Node& node) {
  switch (node.type) {
    case cudaGraphNodeTypeKernel: {
      std::vector<std::byte> argument = node.argument;
      void* arguments[] = {argument.data()};
      node.kernel->run(arguments);
      break;
    }
    case cudaGraphNodeTypeMemcpy: std::memcpy(node.to, node.from, node.bytes); break;
    case cudaGraphNodeTypeGraph: run(*node.inner); break;
    case cudaGraphNodeTypeConditional: run_conditional(node); break;
    default: break;
  }
}

// The youngest node that may run comes first, so that a missing edge shows.
void run(const Graph& graph) {
  std::set<const Node*> done;
  while (done.size() < graph.nodes.size()) {
    const auto ready = std::find_if(graph.nodes.rbegin(), graph.nodes.rend(), [&](const auto& node) {
      return done.count(node.get()) == 0 && std::all_of(node->after.begin(), node->after.end(),
                                                        [&](const Node* other) { return done.count(other) == 1; });
    });
    if (ready == graph.nodes.rend()) throw Fault{cudaErrorLaunchFailure};
    run(**ready);
    done.insert(ready->get());
  }
}

}  // namespace

Graph::Graph(Owner owned_by) : owner(owned_by) { state().graphs.insert(this); }

Graph::~Graph() {
  for (const auto& node : nodes) state().nodes.erase(node.get());
  state().graphs.erase(this);
}

State& state() {
  // Never destroyed: graphs may outlive static objects.
  static State* const all = new State;
  return *all;
}

int& current_device() {
  thread_local int device = 0;
  return device;
}

cudaError_t State::enter(const char* function) {
  const int64_t number = calls++, number_of = calls_of[function]++;
  const bool is_meant = fail_function.empty() || fail_function == function;
  if (fail_at >= 0 && failed.empty() && is_meant && (fail_function.empty() ? number : number_of) == fail_at) {
    failed = function;
    return last = fail_error;
  }
  if (sticky != cudaSuccess) return sticky;
  const bool asks_driver = std::strcmp(function, "cudaDriverGetVersion") == 0;
  if (driver < 12000 && !asks_driver) return last = cudaErrorInsufficientDriver;
  if (devices == 0 && !asks_driver) return last = cudaErrorNoDevice;
  return cudaSuccess;
}

void State::submit(std::function<void()> job) {
  if (threads == 0) {
    job();
    return;
  }
  const std::lock_guard<std::recursive_mutex> hold(mutex);
  if (!worker_.joinable()) worker_ = std::thread([this] { work(); });
  ++waiting;
  queue_.push_back(std::move(job));
  changed.notify_all();
}

void State::work() {
  std::unique_lock<std::recursive_mutex> hold(mutex);
  for (;;) {
    changed.wait(hold, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const auto job = std::move(queue_.front());
    queue_.pop_front();
    hold.unlock();
    job();
    hold.lock();
    --waiting;
    changed.notify_all();
  }
}

void State::drain() {
  {
    const std::lock_guard<std::recursive_mutex> hold(mutex);
    stopping_ = true;
    changed.notify_all();
  }
  if (worker_.joinable()) worker_.join();
  stopping_ = false;
}

void State::begin_running() {
  const std::lock_guard<std::recursive_mutex> hold(mutex);
  if (running++ == 0)
    for (const auto& [at, memory] : host) mprotect(memory.device_view, memory.bytes, PROT_READ | PROT_WRITE);
}

void State::end_running() {
  const std::lock_guard<std::recursive_mutex> hold(mutex);
  if (--running == 0)
    for (const auto& [at, memory] : host) mprotect(memory.device_view, memory.bytes, PROT_NONE);
}

Node& add(Graph& graph, cudaGraphNodeType type) {
  graph.nodes.push_back(std::make_unique<Node>());
  Node& node = *graph.nodes.back();
  node.type = type;
  node.graph = &graph;
  state().nodes.insert(&node);
  return node;
}

std::unique_ptr<Graph> copy_of(const Graph& graph, Owner owner) {
  auto copy = std::make_unique<Graph>(owner);
  copy->handles = graph.handles;
  std::map<const Node*, Node*> copies;
  for (const auto& node : graph.nodes) {
    Node& added = add(*copy, node->type);
    copies[node.get()] = &added;
    for (const Node* other : node->after) added.after.push_back(copies.at(other));
    added.device = node->device;
    added.kernel = node->kernel;
    added.argument = node->argument;
    added.cooperative = node->cooperative;
    added.to = node->to;
    added.from = node->from;
    added.bytes = node->bytes;
    added.is_array = node->is_array;
    added.kind = node->kind;
    added.condition = node->condition;
    if (node->inner) added.inner = copy_of(*node->inner, Owner::Node);
  }
  return copy;
}

const Node* find(const Graph& graph, const std::function<bool(const Node&)>& wanted) {
  for (const auto& node : graph.nodes) {
    if (wanted(*node)) return node.get();
    if (node->inner)
      if (const Node* found = find(*node->inner, wanted)) return found;
  }
  return nullptr;
}

void set_condition(cudaGraphConditionalHandle handle, bool value) {
  if (current == nullptr || current->conditions.count(handle) == 0) throw Fault{cudaErrorLaunchFailure};
  current->conditions[handle] = value;
}

void execute(Exec& exec) {
  state().begin_running();
  current = &exec;
  for (auto& condition : exec.conditions) condition.second.reset();
  try {
    if (state().sticky == cudaSuccess) run(*exec.graph);
  } catch (const Fault& fault) {
    const std::lock_guard<std::recursive_mutex> hold(state().mutex);
    state().sticky = fault.error;
  }
  current = nullptr;
  state().end_running();
}

}  // namespace fake
