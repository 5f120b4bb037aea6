// Tiles of the elementwise kernels, read and written with conversion.
#pragma once

#include <cstdint>

#include "convert_impl.h"
#include "matrix.h"
#include "tiling.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// A whole tile in channels_last order has at most TILE elements, or NOISE_CHUNK rows of TILE_COLS columns.
constexpr int64_t BUFFER = NOISE_CHUNK * TILE_COLS > TILE ? NOISE_CHUNK * TILE_COLS : TILE;

// One tile: rows [row, row + rows) and columns [col, col + cols) of one sample.
struct Tile {
  int64_t sample, row, col, rows, cols;
};

// The tile of a unit of work.
FD_INLINE Tile tile_of(const Shape& shape, const Tiling& tiles, int64_t unit) {
  const int64_t per_sample = tiles.row_tiles * tiles.col_tiles;
  const int64_t within = unit % per_sample;
  Tile tile;
  tile.sample = unit / per_sample;
  tile.row = within / tiles.col_tiles * tiles.tile_rows;
  tile.col = within % tiles.col_tiles * tiles.tile_cols;
  tile.rows = shape.rows - tile.row < tiles.tile_rows ? shape.rows - tile.row : tiles.tile_rows;
  tile.cols = shape.cols - tile.col < tiles.tile_cols ? shape.cols - tile.col : tiles.tile_cols;
  return tile;
}

// Where its first element lies.
FD_INLINE int64_t offset_of(const Matrix& m, const Tile& tile) {
  return tile.sample * m.sample_stride + tile.row * m.row_stride + tile.col;
}

// Whether it lies in memory without gaps.
FD_INLINE bool is_one_run(const Matrix& m, const Tile& tile) { return tile.rows == 1 || m.row_stride == tile.cols; }

// The tile's values, [rows, cols] dense: in place where they lie so already, else converted into the buffer.
template <typename A>
FD_INLINE const A* load_tile(const Matrix& m, const Tile& tile, A* buffer) {
  const int64_t offset = offset_of(m, tile);
  if (is_one_run(m, tile)) return run_at(m, offset, tile.rows * tile.cols, buffer);
  for (int64_t r = 0; r < tile.rows; ++r) load_run(buffer + r * tile.cols, m, offset + r * m.row_stride, tile.cols);
  return buffer;
}

// Write a tile of results where it belongs. values: [rows, cols], dense.
template <typename A>
FD_INLINE void write_tile(const Matrix& m, const Tile& tile, const A* values) {
  const int64_t offset = offset_of(m, tile);
  if (is_one_run(m, tile)) {
    store_run(values, m, offset, tile.rows * tile.cols);
  } else {
    for (int64_t r = 0; r < tile.rows; ++r) store_run(values + r * tile.cols, m, offset + r * m.row_stride, tile.cols);
  }
}

// Where to compute a tile of results, [rows, cols] dense: in place where that is possible, else the buffer, for
// write_tile to take.
template <typename A>
FD_INLINE A* result_tile(const Matrix& m, const Tile& tile, A* buffer) {
  return is_one_run(m, tile) && m.dtype == dtype_of<A>() ? (A*)m.data + offset_of(m, tile) : buffer;
}

}  // namespace fastdiff::FD_VARIANT
