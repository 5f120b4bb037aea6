// Memory to work in. Launchers only, as tensors.h.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>

#include "tensors.h"

namespace fastdiff {

// Memory of the calling thread, kept from call to call: fresh pages would cost more than the arithmetic of small
// layers.
class Workspace {
 public:
  float* take(int64_t floats) {
    if (floats > size_) {
      constexpr size_t PAGE = size_t{2} << 20;
      const size_t bytes = (sizeof(float) * static_cast<size_t>(floats) + PAGE - 1) / PAGE * PAGE;
      size_ = 0;
      data_.reset();
      data_.reset(static_cast<float*>(std::aligned_alloc(PAGE, bytes)));
      STD_TORCH_CHECK(data_ != nullptr, "out of memory: an op needs ", bytes, " bytes to work in");
      madvise(data_.get(), bytes, MADV_HUGEPAGE);
      size_ = static_cast<int64_t>(bytes / sizeof(float));
    }
#ifdef FASTDIFF_POISON
    // What is read before it is written shows as NaN in a result.
    std::fill_n(data_.get(), floats, std::numeric_limits<float>::quiet_NaN());
#endif
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

inline float* workspace(int64_t floats) {
  static thread_local Workspace memory;
  return memory.take(floats);
}

}  // namespace fastdiff
