#include "loop.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string_view>

#include "failure.h"
#include "running.h"

namespace fastdiff {

namespace {

void write(std::string_view text, char* message, int64_t room) {
  if (message == nullptr || room <= 0) return;
  const size_t length = std::min(text.size(), static_cast<size_t>(room) - 1);
  std::memcpy(message, text.data(), length);
  message[length] = '\0';
}

// Runs `work`, of which no exception leaves the library.
template <typename F>
int64_t guarded(char* message, int64_t room, const F& work) {
  try {
    work();
    write("", message, room);
    return 0;
  } catch (const Failure& failure) {
    write(failure.what(), message, room);
    return failure.code;
  } catch (const std::bad_alloc&) {
    write("out of host memory", message, room);
    return cudaErrorMemoryAllocation;
  } catch (const std::exception& error) {
    write(error.what(), message, room);
    return LOOP_BROKEN;
  }
}

cudaStream_t stream_of(int64_t address) { return reinterpret_cast<cudaStream_t>(static_cast<intptr_t>(address)); }

}  // namespace

}  // namespace fastdiff

using fastdiff::Loop;

int64_t fd_loop_layout() { return fastdiff::LOOP_LAYOUT; }

int64_t fd_loop_versions(int64_t device, int64_t* driver, int64_t* runtime, char* message, int64_t room) {
  return fastdiff::guarded(message, room, [&] {
    int count = 0, version = 0;
    FD_CUDA(cudaGetDeviceCount, &count);
    if (device < 0 || device >= count)
      throw fastdiff::Failure(fastdiff::LOOP_MISUSED,
                              "device must be in [0, " + std::to_string(count) + "), got " + std::to_string(device));
    FD_CUDA(cudaDriverGetVersion, &version);
    *driver = version;
    FD_CUDA(cudaRuntimeGetVersion, &version);
    *runtime = version;
  });
}

int64_t fd_loop_build(const fastdiff::LoopOptions* options, void** loop, char* message, int64_t room) {
  return fastdiff::guarded(message, room, [&] { *loop = new Loop(*options); });
}

int64_t fd_loop_launch(void* loop, int64_t first, int64_t last, int64_t num_rows, int64_t seed, int64_t stream,
                       const uint8_t* evaluates, char* message, int64_t room) {
  return fastdiff::guarded(message, room, [&] {
    static_cast<Loop*>(loop)->launch(first, last, num_rows, seed, fastdiff::stream_of(stream), evaluates);
  });
}

int64_t fd_loop_wait(void* loop, double seconds, int64_t* finished, char* message, int64_t room) {
  return fastdiff::guarded(message, room, [&] { *finished = static_cast<Loop*>(loop)->wait(seconds) ? 1 : 0; });
}

int64_t fd_loop_finish(void* loop, char* message, int64_t room) {
  return fastdiff::guarded(message, room, [&] { static_cast<Loop*>(loop)->finish(); });
}

void fd_loop_progress(void* loop, int64_t* done, int64_t* bad_row) {
  *done = static_cast<Loop*>(loop)->done();
  *bad_row = static_cast<Loop*>(loop)->bad_row();
}

void fd_loop_stop(void* loop, int64_t wanted) { static_cast<Loop*>(loop)->stop(wanted != 0); }

int64_t fd_loop_destroy(void* loop, char* message, int64_t room) {
  const std::unique_ptr<Loop> owned(static_cast<Loop*>(loop));
  return fastdiff::guarded(message, room, [&] { owned->release(); });
}
