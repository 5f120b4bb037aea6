// The noise that a kernel adds. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace fastdiff {

// Noise of the contract (given.data == nullptr), or given.
struct Noise {
  Matrix given;
  uint64_t seed;
  uint32_t stream;
  const int64_t* sample_ids;  // [B]
  const int64_t* row;         // [B], or [1] of all samples
  int64_t row_stride;         // 1, or 0
};

}  // namespace fastdiff
