// How images are cut into tiles, the units of work of the elementwise kernels. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

namespace fastdiff {

// Of a batch of images, as a Matrix has it.
struct Shape {
  int64_t batch, rows, cols;
  bool channels_last;
};

// Tiles: at most this many elements of one sample, which keeps all buffers of a unit in the first-level cache.
constexpr int64_t TILE = 1024;
constexpr int64_t TILE_COLS = 64;
constexpr int64_t NOISE_CHUNK = 64;

struct Tiling {
  int64_t tile_rows, tile_cols, row_tiles, col_tiles;
};

Tiling tiling(const Shape& shape);

// A work unit is one tile of one sample; its result depends on the sample alone, not on the batch it is in.
int64_t num_units(const Shape& shape);

// Units that a thread takes at a time: about 16,000 elements, some 10 us.
constexpr int64_t GRAIN = 16;

}  // namespace fastdiff
