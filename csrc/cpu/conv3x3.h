// What the 3x3 convolutions of training are given: packing of weights that change at every step, and their gradient.
// Plain data, as in kernels.h. The convolution itself is the plan's.
#pragma once

#include <cstdint>

#include "rounding.h"

namespace fastdiff {

// Weights [columns, rows, 3, 3] by strides, into panels for Winograd: [points, panels, rows, PANEL].
struct PackArgs {
  const float* weight;
  int64_t rows, columns;
  int64_t row_stride, column_stride, y_stride, x_stride;
  int64_t size;  // of Winograd's tiles of results: 4 or 2
  float* packed;
};
// Rows of one panel that a unit packs.
constexpr int64_t PACK_ROWS = 16;

// Gradient of the weights: dweight[o][ky][kx][i] = sum of dy[y][x][o] x[y + ky - 1][x + kx - 1][i] over all pixels.
struct ConvGradArgs {
  const float *x, *dy;  // [B, H, W, C]
  int64_t batch, height, width, channels_in, channels_out;
  int64_t size;                 // as of PackArgs
  int64_t block_in, block_out;  // channels of a unit, multiples of 16
  float* dweight;               // [C_out, 3, 3, C_in]
};
// Tiles that are transformed before they are multiplied.
constexpr int64_t GRAD_TILES = 24;

// Points of Winograd's transform.
static inline int64_t grad_points(const ConvGradArgs& a) { return (a.size + 2) * (a.size + 2); }
// Pairs of a block of each side.
static inline int64_t grad_units(const ConvGradArgs& a) {
  return ceil_div(a.channels_in, a.block_in) * ceil_div(a.channels_out, a.block_out);
}
// One cache line more than a point holds, as point_stride in instructions.h.
static inline int64_t grad_stride(int64_t rows, int64_t columns) { return rows * columns + 16; }
// Floats of scratch of a thread.
static inline int64_t grad_scratch(const ConvGradArgs& a) {
  return grad_points(a) * (grad_stride(GRAD_TILES, a.block_in) + grad_stride(GRAD_TILES, a.block_out) +
                           grad_stride(a.block_out, a.block_in));
}

}  // namespace fastdiff
