// What the fake runtime knows.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "fake_runtime.h"

namespace fake {

struct Graph;

struct Node {
  cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
  Graph* graph = nullptr;
  std::vector<Node*> after;
  int device = 0;
  const Kernel* kernel = nullptr;
  std::vector<std::byte> argument;
  bool cooperative = false;
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
  bool is_array = false;
  std::unique_ptr<Graph> inner;  // child graph, or body of a conditional node
  cudaGraph_t inner_handle = nullptr;
  cudaGraphConditionalNodeType kind = cudaGraphCondTypeIf;
  cudaGraphConditionalHandle condition = 0;
};

enum class Owner { Caller, Capture, Node, Exec };

struct Graph {
  explicit Graph(Owner owned_by);
  ~Graph();
  const Owner owner;
  std::vector<std::unique_ptr<Node>> nodes;
  std::map<cudaGraphConditionalHandle, bool> handles;  // whether a conditional node has it
  int instances = 0;
};

struct Exec {
  std::unique_ptr<Graph> graph;
  Graph* source = nullptr;
  int device = 0;
  int running = 0;
  std::map<cudaGraphConditionalHandle, std::optional<bool>> conditions;
};

struct Event {
  int device = 0;
  int pending = 0;
};

struct Stream {
  int device = 0;
};

// Host memory, mapped twice: for the host, and for a GPU while one is running.
struct HostMemory {
  void* device_view = nullptr;
  size_t bytes = 0;
};

// A fault of a kernel, after which every call fails.
struct Fault {
  cudaError_t error;
};

class State {
 public:
  std::recursive_mutex mutex;
  std::condition_variable_any changed;

  int64_t driver = 13000, devices = 2, mps = 0, threads = 0, capturing = 0;
  std::set<Graph*> graphs;
  std::set<Node*> nodes;
  std::set<Exec*> execs;
  std::set<Event*> events;
  std::set<Stream*> streams;
  std::map<void*, HostMemory> host;
  std::map<const void*, size_t> registered;
  cudaGraphConditionalHandle next_handle = 100;
  cudaError_t sticky = cudaSuccess, last = cudaSuccess, fault = cudaSuccess;
  int running = 0;
  int waiting = 0;  // work submitted and not done
  std::string violation;

  std::string fail_function, failed;
  int64_t fail_at = -1, calls = 0;
  cudaError_t fail_error = cudaSuccess;
  std::map<std::string, int64_t> calls_of;

  // Called by each function of the runtime; what it is to return at once, or success.
  cudaError_t enter(const char* function);
  void violate(const std::string& what) {
    if (violation.empty()) violation = what;
  }
  // Runs the work of a stream, at once or in a thread.
  void submit(std::function<void()> work);
  void drain();
  // Mapped memory is a device's while something runs.
  void begin_running();
  void end_running();

 private:
  void work();
  std::thread worker_;
  bool stopping_ = false;
  std::deque<std::function<void()>> queue_;
};

State& state();
// The calling thread's.
int& current_device();
std::unique_ptr<Graph> copy_of(const Graph& graph, Owner owner);
Node& add(Graph& graph, cudaGraphNodeType type);
// Whether a node of a type lies in the graph or within its nodes; the node.
const Node* find(const Graph& graph, const std::function<bool(const Node&)>& wanted);
void execute(Exec& exec);

}  // namespace fake
