// What group norm works on: units, their tiles, and strips of vectors.
//
// Both memory formats are the same loops. Of [B, pixels, C] a tile is some pixels of the unit's channels, and a vector
// is 16 channels; of [B, C, pixels] (PLANAR) it is a piece of one channel, and a vector is 16 pixels. float32 rows of
// whole vectors are read and written where they lie, all others through a buffer.
#pragma once

#include <cstdint>

#include "convert_impl.h"
#include "gemm_impl.h"
#include "group_norm_act.h"
#include "matrix.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

struct NormUnit {
  int64_t sample, first, channels, width;  // width: channels rounded up to whole vectors
};

FD_INLINE NormUnit norm_unit(const NormArgs& a, int64_t unit) {
  const int64_t blocks = ceil_div(a.channels, a.block), first = unit % blocks * a.block;
  return {unit / blocks, first, first + a.block < a.channels ? a.block : a.channels - first, norm_width(a)};
}

// Rows and columns of the image's matrix.
struct NormTile {
  int64_t row, rows, col, cols;
};

// A unit's tiles: `pieces` of at most `max_pixels` for all of its channels at once, or for each.
struct NormTiles {
  int64_t max_pixels, pieces, total;
};

template <bool PLANAR>
FD_INLINE NormTiles norm_tiles(const NormArgs& a, const NormUnit& u) {
  NormTiles t;
  t.max_pixels = !PLANAR ? norm_tile(a) / u.width : a.pixels < NORM_TILE ? a.pixels : NORM_TILE;
  t.pieces = ceil_div(a.pixels, t.max_pixels);
  t.total = t.pieces * (PLANAR ? u.channels : 1);
  return t;
}

template <bool PLANAR>
FD_INLINE NormTile norm_tile_of(const NormArgs& a, const NormUnit& u, const NormTiles& tiles, int64_t tile) {
  if (!PLANAR) {
    const int64_t first = tile * tiles.max_pixels;
    return {first, a.pixels - first < tiles.max_pixels ? a.pixels - first : tiles.max_pixels, u.first, u.channels};
  }
  if (tiles.pieces == 1) return {u.first + tile, 1, 0, a.pixels};
  const int64_t first = tile % tiles.pieces * tiles.max_pixels;
  return {u.first + tile / tiles.pieces, 1, first,
          a.pixels - first < tiles.max_pixels ? a.pixels - first : tiles.max_pixels};
}

// Values of a tile: rows that begin `stride` apart.
struct Rows {
  float* at;
  int64_t stride;
};

// A float32 element.
FD_INLINE float* place_of(const Matrix& m, int64_t sample, int64_t row, int64_t col) {
  return (float*)m.data + sample * m.sample_stride + row * m.row_stride + col;
}

// Whether a tile can be worked on where it lies.
FD_INLINE bool in_place(const Matrix& m, const NormTile& t) { return m.dtype == Dtype::F32 && t.cols % 16 == 0; }

// Columns [col, col + cols) of the tile's rows. to: [rows, round_up(t.cols, 16)].
FD_INLINE void load_rows(const Matrix& m, int64_t sample, const NormTile& t, int64_t col, int64_t cols, float* to) {
  const int64_t width = round_up(t.cols, 16);
  for (int64_t r = 0; r < t.rows; ++r)
    load_run(to + r * width, m, sample * m.sample_stride + (t.row + r) * m.row_stride + col, cols);
}

// The same the other way.
FD_INLINE void store_rows(const Matrix& m, int64_t sample, const NormTile& t, int64_t col, int64_t cols,
                          const float* from) {
  const int64_t width = round_up(t.cols, 16);
  for (int64_t r = 0; r < t.rows; ++r)
    store_run(from + r * width, m, sample * m.sample_stride + (t.row + r) * m.row_stride + col, cols);
}

// A tile's values, where they lie or in the buffer.
FD_INLINE Rows rows_of(const Matrix& m, int64_t sample, const NormTile& t, float* buffer) {
  if (in_place(m, t)) return {place_of(m, sample, t.row, t.col), m.row_stride};
  load_rows(m, sample, t, t.col, t.cols, buffer);
  return {buffer, round_up(t.cols, 16)};
}

// Where a tile of results is made: its own place, or the buffer, for `finish_rows` to take from.
FD_INLINE Rows result_rows(const Matrix& m, int64_t sample, const NormTile& t, float* buffer) {
  if (in_place(m, t)) return {place_of(m, sample, t.row, t.col), m.row_stride};
  return {buffer, round_up(t.cols, 16)};
}

// Write a tile of results unless it was made in its place.
FD_INLINE void finish_rows(const Matrix& m, int64_t sample, const NormTile& t, const Rows& from) {
  if (!in_place(m, t)) store_rows(m, sample, t, t.col, t.cols, from.at);
}

// The tile as it lies in x, in x2, or in both: how many of its channels are x's, and the tile as x2 counts.
template <bool PLANAR>
FD_INLINE int64_t num_from_x(const NormArgs& a, const NormTile& t) {
  const int64_t first = PLANAR ? t.row : t.col, count = PLANAR ? t.rows : t.cols, left = a.channels1 - first;
  return left < 0 ? 0 : left < count ? left : count;
}

template <bool PLANAR>
FD_INLINE NormTile tile_in_x2(const NormArgs& a, NormTile t) {
  (PLANAR ? t.row : t.col) -= a.channels1;
  return t;
}

// What is added to a channel of a sample.
FD_INLINE float added_to(const NormArgs& a, int64_t sample, int64_t channel) {
  return (a.added_bias == nullptr ? 0.0f : a.added_bias[channel]) +
         (a.added_time == nullptr ? 0.0f : a.added_time[sample * a.channels + channel]);
}

// (x, x2) of a tile, without what is added to each channel; with a residual h itself, which is written to `total`
// unless `written` says that it has been. What lies behind the last column is whatever was there. buffer and
// second_buffer: [norm_tile(a)] each.
template <bool PLANAR>
FD_INLINE Rows load_h(const NormArgs& a, const NormUnit& u, const NormTile& t, bool written, float* buffer,
                      float* second_buffer) {
  if (written) return rows_of(a.total, u.sample, t, buffer);
  const int64_t head = num_from_x<PLANAR>(a, t), count = PLANAR ? t.rows : t.cols;
  Rows h = {buffer, round_up(t.cols, 16)};
  if (head == count) {
    h = rows_of(a.x, u.sample, t, buffer);
  } else if (head == 0) {
    h = rows_of(a.x2, u.sample, tile_in_x2<PLANAR>(a, t), buffer);
  } else {
    load_rows(a.x, u.sample, t, t.col, head, buffer);
    load_rows(a.x2, u.sample, t, 0, count - head, buffer + head);
  }
  if (a.residual.data == nullptr) return h;
  const Rows residual = rows_of(a.residual, u.sample, t, second_buffer);
  const int64_t width = round_up(t.cols, 16);
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = 0; c < t.cols; ++c)
      buffer[r * width + c] = h.at[r * h.stride + c] + added_to(a, u.sample, PLANAR ? t.row : t.col + c) +
                              residual.at[r * residual.stride + c];
  store_rows(a.total, u.sample, t, t.col, t.cols, buffer);
  // As it was rounded.
  load_rows(a.total, u.sample, t, t.col, t.cols, buffer);
  return {buffer, width};
}

// body<U>(place, count, first): U neighbouring vectors from `place` of a row on, and `count` times so, on the next
// rows, or (PLANAR) behind one another. `first` is the place of their coefficients.
template <bool PLANAR, typename Body>
FD_INLINE void each_strip(const NormUnit& u, const NormTile& t, const Body& body) {
  const int64_t vectors = ceil_div(t.cols, 16);
  if (PLANAR) {
    // The last vector may be cut, which one by one they are.
    const int64_t strips = WIDE > 1 ? t.cols / (16 * WIDE) : 0, single = vectors - strips * WIDE;
    if (strips > 0) body.template operator()<WIDE>(0, strips, t.row - u.first);
    if (single > 0) body.template operator()<1>(strips * WIDE * 16, single, t.row - u.first);
    return;
  }
  int64_t v = 0;
  for (; v + WIDE <= vectors; v += WIDE) body.template operator()<WIDE>(16 * v, t.rows, 16 * v);
  for (; v < vectors; ++v) body.template operator()<1>(16 * v, t.rows, 16 * v);
}

// From a strip's vectors to the next ones.
template <bool PLANAR, int U>
FD_INLINE int64_t step_of(const Rows& rows) {
  return PLANAR ? 16 * U : rows.stride;
}

// The coefficients of a strip: U vectors of channels, from: [16 * U], or one channel's, from: [1].
template <bool PLANAR, int U>
FD_INLINE void coefficients_of(const float* from, f32x16 (&to)[U]) {
  for (int j = 0; j < U; ++j) to[j] = PLANAR ? splat(*from) : load16(from + 16 * j);
}

// What lies behind a row's last value is no part of a sum over the row.
template <bool PLANAR>
FD_INLINE f32x16 zero_behind_end(f32x16 v, int64_t place, const NormTile& t) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return PLANAR && place + 16 > t.cols ? select(lane < (int32_t)(t.cols - place), v, (f32x16){}) : v;
}

}  // namespace fastdiff::FD_VARIANT
