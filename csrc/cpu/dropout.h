// What `dropout` is given. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace fastdiff {

// y = x * scale where the element's word is at most last_kept, else 0. Elements count in memory order.
struct DropoutArgs {
  Matrix x, y;
  int64_t numel;
  uint64_t seed;
  uint32_t stream, last_kept;
  double scale;
};
constexpr int64_t DROPOUT_UNIT = 4096;

}  // namespace fastdiff
