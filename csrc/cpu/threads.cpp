// Loops over PyTorch's threads.
#include "threads.h"

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <functional>

namespace fastdiff {

void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) { body(first, last); });
}

}  // namespace fastdiff
