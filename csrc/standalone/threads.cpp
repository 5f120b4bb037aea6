// Loops over the pool of the calling thread.
#include "threads.h"

#include "pool.h"

namespace fastdiff {

void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (!Pool::run_in_current(begin, end, grain, body) && begin < end) body(begin, end);
}

}  // namespace fastdiff
