// What `diffuse` is given. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "matrix.h"
#include "noise.h"
#include "tiling.h"

namespace fastdiff {

struct DiffuseArgs {
  Shape shape;
  Matrix x0, x_t, target;  // target.data == nullptr: not wanted
  Noise noise;
  const int64_t* t;   // [B]
  const void* table;  // [T, 4], float, or double when x0 is
  int levels;
};

}  // namespace fastdiff
