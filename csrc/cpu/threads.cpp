// Loops over the pool of the calling thread, or over PyTorch's threads.
#include "threads.h"

#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "pool.h"

namespace fastdiff {

static thread_local bool alone = false;

Alone::Alone() : before_(alone) { alone = true; }

Alone::~Alone() { alone = before_; }

int64_t loop_threads() { return alone ? 1 : torch::stable::get_num_threads(); }

void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (alone) {
    if (begin < end) body(begin, end);
    return;
  }
  if (Pool::run_in_current(begin, end, grain, body)) return;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) { body(first, last); });
}

Pool& pool_of_this_thread(int64_t threads) {
  struct Owned {
    std::unique_ptr<Pool> pool;
    pid_t process = 0;
  };
  thread_local Owned owned;
  if (owned.process != getpid()) {
    // A child process has the pool and none of its threads, for which nobody may wait.
    owned.pool.release();
    owned.process = getpid();
  }
  if (!owned.pool || owned.pool->threads() != threads) {
    owned.pool.reset();
    owned.pool = std::make_unique<Pool>(threads);
  }
  return *owned.pool;
}

}  // namespace fastdiff
