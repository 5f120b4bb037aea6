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
// Some tiles at a time are transformed, then multiplied; the sums over all are transformed back. Where all tiles are
// taken at once, a block of channels is multiplied and transformed back while its sums are in the cache.
enum GradPhase : int { GRAD_TRANSFORM, GRAD_MULTIPLY, GRAD_FINISH, GRAD_BLOCK };
struct ConvGradArgs {
  const float *x, *dy;  // [B, H, W, C]
  int64_t batch, height, width, channels_in, channels_out;
  int64_t size;          // as of PackArgs
  int64_t first, count;  // tiles
  GradPhase phase;
  float *v, *z;  // [points][count, row_in], [points][count, row_out]
  float* sums;   // [points][C_out in whole vectors, row_in]; of a block [points][GRAD_ROWS, GRAD_COLUMNS], of a thread
  float* dweight;  // [C_out, 3, 3, C_in]
};
// Tiles at a time, so that 64 columns of them fit a first-level cache; tiles of a unit that transforms; output channels
// of one that multiplies, and input channels of a block.
constexpr int64_t GRAD_CHUNK = 80, GRAD_TILES = 4, GRAD_ROWS = 48, GRAD_COLUMNS = 64;

// Points of Winograd's transform, and tiles of the whole batch.
static inline int64_t grad_points(const ConvGradArgs& a) { return (a.size + 2) * (a.size + 2); }
static inline int64_t grad_tiles(const ConvGradArgs& a) {
  return a.batch * ceil_div(a.height, a.size) * ceil_div(a.width, a.size);
}
// Floats of a row of channels: whole vectors, and one more, so that rows do not compete for the same sets of a cache.
static inline int64_t grad_row(int64_t channels) { return round_up(channels, 16) + 16; }
// Floats from one point's sums of a block to the next.
constexpr int64_t grad_block_stride() { return GRAD_ROWS * GRAD_COLUMNS + 16; }
static inline int64_t grad_units(const ConvGradArgs& a) {
  const int64_t blocks = ceil_div(a.channels_out, GRAD_ROWS);
  switch (a.phase) {
    case GRAD_TRANSFORM: return ceil_div(a.count, GRAD_TILES);
    case GRAD_MULTIPLY: return grad_points(a) * blocks;
    case GRAD_BLOCK: return blocks * ceil_div(a.channels_in, GRAD_COLUMNS);
    default: return a.channels_out;
  }
}

}  // namespace fastdiff
