// The rest of the fake runtime: the driver, memory, errors; and what tests tell and ask it.
#include "fake_runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "fake_state.h"

using fake::Owner;
using fake::state;

#define ENTER()                                               \
  std::unique_lock<std::recursive_mutex> hold(state().mutex); \
  if (const cudaError_t wrong = state().enter(__func__)) return wrong

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) {
  ENTER();
  *version = static_cast<int>(state().driver);
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  ENTER();
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  ENTER();
  *count = static_cast<int>(state().devices);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  ENTER();
  if (attribute != cudaDevAttrMpsEnabled || device >= state().devices) return state().last = cudaErrorInvalidValue;
  *value = static_cast<int>(state().mps);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned int flags) {
  ENTER();
  if ((flags & cudaHostAllocMapped) == 0) return state().last = cudaErrorInvalidValue;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), whole = (bytes + page - 1) / page * page;
  const int file = memfd_create("fake_cuda", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(whole)) != 0) return state().last = cudaErrorMemoryAllocation;
  void* const host = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  void* const device =
      mmap(nullptr, whole, state().running > 0 ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_SHARED, file, 0);
  close(file);
  state().host[host] = {device, whole};
  *memory = host;
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int flags) {
  ENTER();
  const auto found = state().host.find(host);
  if (found == state().host.end() || flags != 0) return state().last = cudaErrorInvalidValue;
  *device = found->second.device_view;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* host) {
  std::unique_lock<std::recursive_mutex> hold(state().mutex);
  const cudaError_t wrong = state().enter(__func__);
  const auto found = state().host.find(host);
  if (found == state().host.end()) {
    state().violate("cudaFreeHost of what is none");
    return state().last = cudaErrorInvalidValue;
  }
  munmap(found->second.device_view, found->second.bytes);
  munmap(host, found->second.bytes);
  state().host.erase(found);
  return wrong;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorLaunchTimeout: return "cudaErrorLaunchTimeout";
    default: return "cudaErrorOfTheFake";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorLaunchTimeout: return "the launch timed out and was terminated";
    default: return "an error of the fake runtime";
  }
}

cudaError_t cudaGetLastError() {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  return state().sticky != cudaSuccess ? state().sticky : std::exchange(state().last, cudaSuccess);
}

}  // extern "C"

namespace {

std::string text;

const char* kept(std::string value) {
  text = std::move(value);
  return text.c_str();
}

}  // namespace

FAKE_EXPORT void fake_reset() {
  fake::State& all = state();
  all.drain();
  const std::lock_guard<std::recursive_mutex> hold(all.mutex);
  all.driver = 13000;
  all.devices = 2;
  all.mps = all.threads = all.capturing = 0;
  for (fake::Exec* exec : std::set<fake::Exec*>(all.execs)) delete exec;
  for (fake::Event* event : all.events) delete event;
  for (fake::Stream* stream : all.streams) delete stream;
  for (const auto& [at, memory] : all.host) {
    munmap(memory.device_view, memory.bytes);
    munmap(at, memory.bytes);
  }
  for (fake::Graph* graph : std::set<fake::Graph*>(all.graphs))
    if (all.graphs.count(graph) == 1 && graph->owner == Owner::Caller) delete graph;
  all.execs.clear();
  all.events.clear();
  all.streams.clear();
  all.host.clear();
  all.registered.clear();
  all.sticky = all.last = all.fault = cudaSuccess;
  all.running = 0;
  fake::current_device() = 0;
  all.violation.clear();
  all.calls = 0;
  all.calls_of.clear();
  fake_fail(nullptr, -1, cudaSuccess);
}

FAKE_EXPORT void fake_set(const char* what, int64_t value) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  const std::string name = what;
  if (name == "driver") state().driver = value;
  if (name == "devices") state().devices = value;
  if (name == "mps") state().mps = value;
  if (name == "threads") state().threads = value;
  if (name == "capturing") state().capturing = value;
  if (name == "fault") state().fault = static_cast<cudaError_t>(value);
}

FAKE_EXPORT void fake_register(void* memory, int64_t bytes) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  state().registered[memory] = static_cast<size_t>(bytes);
}

FAKE_EXPORT void* fake_stream_new(int64_t device) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  auto* const stream = new fake::Stream{static_cast<int>(device)};
  state().streams.insert(stream);
  return stream;
}

FAKE_EXPORT void fake_fail(const char* function, int64_t nth, int64_t error) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  fake::State& all = state();
  all.fail_function = function == nullptr ? "" : function;
  all.fail_error = static_cast<cudaError_t>(error);
  all.failed.clear();
  const int64_t so_far = function == nullptr ? all.calls : all.calls_of[function];
  all.fail_at = nth < 0 ? -1 : so_far + nth;
}

FAKE_EXPORT const char* fake_failed() {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  return kept(state().failed);
}

FAKE_EXPORT int64_t fake_current_device() { return fake::current_device(); }

FAKE_EXPORT int64_t fake_calls(const char* function) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  return state().calls_of[function];
}

FAKE_EXPORT int64_t fake_live(const char* what) {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  const std::string name = what;
  if (name == "execs") return static_cast<int64_t>(state().execs.size());
  if (name == "events") return static_cast<int64_t>(state().events.size());
  if (name == "host") return static_cast<int64_t>(state().host.size());
  return std::count_if(state().graphs.begin(), state().graphs.end(),
                       [](const fake::Graph* graph) { return graph->owner == Owner::Caller; });
}

FAKE_EXPORT const char* fake_violation() {
  const std::lock_guard<std::recursive_mutex> hold(state().mutex);
  return kept(state().violation);
}
