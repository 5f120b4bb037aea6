// The sampling loop on a GPU for callers in C, Python's ctypes among them.
//
// A function returns 0, or the code of a failure (LoopFailure, or a cudaError_t), of which `message` [room] is given a
// sentence. A loop belongs to one thread at a time, except for `progress` and `stop`, which any may call meanwhile.
#pragma once

#include <cstdint>

#include "loop_layout.h"

#define FD_EXPORT extern "C" __attribute__((visibility("default")))

// LOOP_LAYOUT of the build.
FD_EXPORT int64_t fd_loop_layout();

// The CUDA version that the driver supports and that of the runtime, as 1000 major + 10 minor. Fails where the device
// cannot be used.
FD_EXPORT int64_t fd_loop_versions(int64_t device, int64_t* driver, int64_t* runtime, char* message, int64_t room);

// Builds the loop's graph, instantiates and uploads it. The captured graphs are copied; the memory that they use, and
// the modules of their kernels, must outlive the loop.
FD_EXPORT int64_t fd_loop_build(const fastdiff::LoopOptions* options, void** loop, char* message, int64_t room);

// Queues rows first to last - 1. Replayed rows that do not evaluate are told apart by `evaluates`: uint8 [last - first]
// on the host, or none, where all do.
FD_EXPORT int64_t fd_loop_launch(void* loop, int64_t first, int64_t last, int64_t num_rows, int64_t seed,
                                 int64_t stream, const uint8_t* evaluates, char* message, int64_t room);

// Waits for the end of a launch, `seconds` at most. Where rows are replayed it queues them, a few at a time.
FD_EXPORT int64_t fd_loop_wait(void* loop, double seconds, int64_t* finished, char* message, int64_t room);

// Stops before the next row and waits until the GPU is done.
FD_EXPORT int64_t fd_loop_finish(void* loop, char* message, int64_t room);

// The row after the one finished last, and the row that met a value that is not finite, or -1. No call to CUDA.
FD_EXPORT void fd_loop_progress(void* loop, int64_t* done, int64_t* bad_row);

// Whether rows are to stop before the next; it holds for later launches too. No call to CUDA.
FD_EXPORT void fd_loop_stop(void* loop, int64_t wanted);

// Stops, waits and releases everything, also where it fails.
FD_EXPORT int64_t fd_loop_destroy(void* loop, char* message, int64_t room);
