// What `step` is given. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "matrix.h"
#include "noise.h"
#include "tiling.h"

namespace fastdiff {

struct StepArgs {
  Shape shape;
  Matrix x, out;
  Matrix model_output, variance_output;  // variance_output.data == nullptr: the variance is not learned
  Matrix base, pred_out;                 // data == nullptr: absent
  Matrix history[3];
  int history_depth;
  Noise noise;
  const int64_t* row;  // [B], or [1] of all samples
  int64_t row_stride;  // 1, or 0
  const void* rows;    // [R, ROW_WIDTH], float, or double when x is
};

}  // namespace fastdiff
