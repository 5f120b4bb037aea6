// Loops over all threads: those of the pool that the calling thread uses, or else PyTorch's in the Python extension
// (threads.cpp) and the caller alone in the library without Python (csrc/standalone/threads.cpp). Launchers only.
#pragma once

#include <cstdint>
#include <functional>

namespace fastdiff {

// Calls body(first, last) for ranges that make up [begin, end) side by side; all but the last are of `grain` numbers at
// least.
void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// In the Python extension: how many threads a loop has that the calling thread starts.
int64_t loop_threads();

// In the Python extension: while it lives, loops that the calling thread starts are its own.
class Alone {
 public:
  Alone();
  ~Alone();
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;

 private:
  bool before_;
};

class Pool;

// In the Python extension: a pool of so many threads, kept until the calling thread ends or asks for another number.
Pool& pool_of_this_thread(int64_t threads);

}  // namespace fastdiff
