// What `dropout` is given. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace fastdiff {

// y = x * scale where the element's word is at most last_kept, else 0. A sample's elements count in memory order.
struct DropoutArgs {
  Matrix x, y;
  int64_t numel;              // of a sample
  const int64_t* sample_ids;  // [B], or nullptr for 0..B-1
  uint64_t seed;
  uint32_t stream, last_kept;
  double scale;
};
// Elements of a unit of work, which lies within a sample.
constexpr int64_t DROPOUT_UNIT = 4096;

constexpr int64_t dropout_units_of_sample(const DropoutArgs& args) {
  return (args.numel + DROPOUT_UNIT - 1) / DROPOUT_UNIT;
}

}  // namespace fastdiff
