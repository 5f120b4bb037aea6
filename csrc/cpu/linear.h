// What the linear layers of training are given: the gradient of their weights. Plain data, as in kernels.h. The layer
// itself is the plan's.
#pragma once

#include <cstdint>

#include "rounding.h"

namespace fastdiff {

// dweight[o][i] = sum of dy[n][o] x[n][i] over all rows n.
struct LinearGradArgs {
  const float *x, *dy;  // [rows, C_in], [rows, C_out]
  int64_t rows, channels_in, channels_out;
  int64_t block_in, block_out;  // channels of a unit, multiples of 16
  float* dweight;               // [C_out, C_in], rows dweight_stride apart
  int64_t dweight_stride;
};
// Rows that are multiplied at a time.
constexpr int64_t LINEAR_ROWS = 32;

// Pairs of a block of each side.
static inline int64_t linear_units(const LinearGradArgs& a) {
  return ceil_div(a.channels_in, a.block_in) * ceil_div(a.channels_out, a.block_out);
}
// Floats of scratch of a thread.
static inline int64_t linear_scratch(const LinearGradArgs& a) {
  return LINEAR_ROWS * (a.block_in + a.block_out) + a.block_in * a.block_out;
}

// Sums over the rows of x, of so many rows at a time: sums[part][c].
struct ColumnSumsArgs {
  const float* x;  // [rows, columns]
  int64_t rows, columns;
  float* sums;  // [parts, columns]
};
constexpr int64_t SUM_ROWS = 256;

}  // namespace fastdiff
