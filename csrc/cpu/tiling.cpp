#include "tiling.h"

#include <cstdint>

namespace fastdiff {

Tiling tiling(const Shape& shape) {
  Tiling tiles;
  if (!shape.channels_last) {
    tiles = {1, TILE, 1, (shape.cols + TILE - 1) / TILE};
  } else {
    tiles.tile_cols = shape.cols < TILE_COLS ? shape.cols : TILE_COLS;
    tiles.tile_rows = TILE / tiles.tile_cols / NOISE_CHUNK * NOISE_CHUNK;
    if (tiles.tile_rows < NOISE_CHUNK) tiles.tile_rows = NOISE_CHUNK;
    tiles.row_tiles = (shape.rows + tiles.tile_rows - 1) / tiles.tile_rows;
    tiles.col_tiles = (shape.cols + tiles.tile_cols - 1) / tiles.tile_cols;
  }
  return tiles;
}

int64_t num_units(const Shape& shape) {
  if (shape.batch == 0 || shape.rows == 0 || shape.cols == 0) return 0;
  const Tiling tiles = tiling(shape);
  return shape.batch * tiles.row_tiles * tiles.col_tiles;
}

}  // namespace fastdiff
