// A CUDA runtime without a GPU, for csrc/cuda: the functions that it calls, over graphs whose kernels are functions of
// the host. It refuses what the real one refuses, runs what it was given, and can be told to fail at any call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace fake {

// What stands where the runtime expects a kernel: a function that is given pointers to its arguments, as a launch is.
struct Kernel {
  static constexpr uint64_t MAGIC = 0x6b65726e656c2121;
  uint64_t magic;
  void (*run)(void** arguments);
  size_t argument_bytes;  // of the one argument
};

// What device code calls.
void set_condition(cudaGraphConditionalHandle handle, bool value);

}  // namespace fake

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))

// Everything as at first: two devices, a driver for CUDA 13.0, launches that run at once, nothing alive.
FAKE_EXPORT void fake_reset();
// "driver" (1000 major + 10 minor), "devices", "mps" (0 or 1), "threads" (1: launches run in a thread of their own),
// "capturing" (1: so are all streams), "fault" (an error: the kernel that runs ends with it).
FAKE_EXPORT void fake_set(const char* what, int64_t value);

// Captured graphs: nodes are added one behind the other, on the device given.
FAKE_EXPORT void* fake_graph_new();
FAKE_EXPORT void fake_graph_free(void* graph);
FAKE_EXPORT void fake_add_kernel(void* graph, void (*function)(void*), void* argument, int64_t cooperative,
                                 int64_t device);
FAKE_EXPORT void fake_add_copy(void* graph, void* to, const void* from, int64_t bytes, int64_t is_array);
FAKE_EXPORT void fake_add_child(void* graph, void* child);
// A node of another type, which does nothing.
FAKE_EXPORT void fake_add_node(void* graph, int64_t type);

// Memory that counts as the device's; all other is pageable.
FAKE_EXPORT void fake_register(void* memory, int64_t bytes);
FAKE_EXPORT void* fake_stream_new(int64_t device);

// The call number `nth`, from 0, of a function (of any, where null) returns `error`.
FAKE_EXPORT void fake_fail(const char* function, int64_t nth, int64_t error);
// The function that failed so, or "".
FAKE_EXPORT const char* fake_failed();
// The calling thread's device.
FAKE_EXPORT int64_t fake_current_device();
// How often a function was called.
FAKE_EXPORT int64_t fake_calls(const char* function);
// How many there are of "graphs", "execs", "events", "host" (memory); captured ones do not count.
FAKE_EXPORT int64_t fake_live(const char* what);
// What no caller may do and the real runtime would not tell, or "".
FAKE_EXPORT const char* fake_violation();
