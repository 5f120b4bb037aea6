// The noise of a tile, drawn or given.
#pragma once

#include <cstdint>

#include "convert_impl.h"
#include "noise.h"
#include "noise_layout.h"
#include "philox_impl.h"
#include "tiles_impl.h"
#include "tiling.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Noise is made in chunks of 64 from a multiple of 4, so a run may be longer than what is asked for.
constexpr int64_t SLACK = 2 * NOISE_CHUNK;

// Normals of the elements [first, first + count) of a sample, at the returned place in buffer [count + SLACK].
FD_INLINE const float* normals_run(float* buffer, int64_t first, int64_t count, uint64_t id, uint32_t last,
                                   uint64_t seed) {
  const int64_t skipped = first % 4;
  const int64_t first_block = first / 4;
  for (int64_t done = 0; done < skipped + count; done += NOISE_CHUNK)
    normals_chunk(buffer + done, (uint32_t)(first_block + done / 4), id, last, seed);
  return buffer + skipped;
}

// Three runs as the columns of rows of three. runs: 3 of [count]; out: [count, 3]. Reads and writes whole vectors: the
// buffers reach past the tile.
FD_INLINE void interleave_three(float* out, const float* const runs[3], int64_t count) {
  // Of the 48 results of 16 rows: which lane of the first two runs, then which of those and the third.
  const i32x16 pairs[3] = {{0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5},
                           {21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26},
                           {0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0}};
  const i32x16 all[3] = {{0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15},
                         {0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15},
                         {26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31}};
  for (int64_t r = 0; r < count; r += 16) {
    const f32x16 a = *(const f32x16u*)(runs[0] + r), b = *(const f32x16u*)(runs[1] + r),
                 c = *(const f32x16u*)(runs[2] + r);
    for (int part = 0; part < 3; ++part)
      *(f32x16u*)(out + 3 * r + 16 * part) = __builtin_shuffle(__builtin_shuffle(a, b, pairs[part]), c, all[part]);
  }
}

FD_INLINE void interleave_three(double* out, const float* const runs[3], int64_t count) {
  for (int64_t r = 0; r < count; ++r)
    for (int c = 0; c < 3; ++c) out[3 * r + c] = runs[c][r];
}

// The tile's noise as A, [rows, cols] dense, in the buffer or where it was given.
template <typename A>
FD_INLINE const A* noise_tile(const Noise& noise, const Shape& shape, const Tile& tile, A* buffer) {
  if (noise.given.data != nullptr) return load_tile(noise.given, tile, buffer);
  alignas(64) float run[TILE + SLACK];
  const uint64_t id = (uint64_t)noise.sample_ids[tile.sample];
  const uint32_t last = (noise.stream << STREAM_SHIFT) | (uint32_t)noise.row[tile.sample * noise.row_stride];
  if (!shape.channels_last) {
    const float* z = normals_run(run, tile.col, tile.cols, id, last, noise.seed);
    for (int64_t i = 0; i < tile.cols; ++i) buffer[i] = (A)z[i];
  } else if (tile.cols == 3) {
    alignas(64) float more[2][TILE + SLACK];
    float* const places[3] = {run, more[0], more[1]};
    const float* z[3];
    for (int64_t c = 0; c < 3; ++c)
      z[c] = normals_run(places[c], (tile.col + c) * shape.rows + tile.row, tile.rows, id, last, noise.seed);
    interleave_three(buffer, z, tile.rows);
  } else {
    for (int64_t c = 0; c < tile.cols; ++c) {
      const float* z = normals_run(run, (tile.col + c) * shape.rows + tile.row, tile.rows, id, last, noise.seed);
      A* to = buffer + c;
      for (int64_t r = 0; r < tile.rows; ++r) to[r * tile.cols] = (A)z[r];
    }
  }
  return buffer;
}

}  // namespace fastdiff::FD_VARIANT
