// The plan's 3x3 convolutions by Winograd's F(4x4, 3x3) and F(2x2, 3x3).
#pragma once

#include <cstdint>

#include "factors_impl.h"
#include "gemm_impl.h"
#include "images_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// B^T d: one dimension of the input's transform, for six values (four for tiles of two). The points of tiles of four
// are 0, 1, -1, 2, -2 and infinity, whose factors are exact.
FD_INLINE void winograd_in(f32x16 (&d)[6]) {
  const f32x16 a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
  const f32x16 first = 4.0f * d[0] - 5.0f * d[2] + d[4], last = 4.0f * d[1] - 5.0f * d[3] + d[5];
  d[0] = first, d[1] = a + b, d[2] = a - b, d[3] = c + e, d[4] = c - e, d[5] = last;
}

FD_INLINE void winograd_in(f32x16 (&d)[4]) {
  const f32x16 a = d[0] - d[2], b = d[1] + d[2], c = d[2] - d[1], e = d[1] - d[3];
  d[0] = a, d[1] = b, d[2] = c, d[3] = e;
}

// A^T m: six products to four results, or four to two, in the first places.
FD_INLINE void winograd_out(f32x16 (&m)[6]) {
  const f32x16 a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  m[0] = m[0] + a + c, m[1] = b + 2.0f * e, m[2] = a + 4.0f * c, m[3] = b + 8.0f * e + m[5];
}

FD_INLINE void winograd_out(f32x16 (&m)[4]) {
  const f32x16 a = m[0] + m[1] + m[2], b = m[1] - m[2] - m[3];
  m[0] = a, m[1] = b;
}

// Transforms by what is multiplied between them. In bfloat16 the points are 0, 2/3, -2/3, 3/2, -3/2 and infinity:
// rounding what is multiplied costs less than half as much there, and the same at each point.
template <typename F> struct Transforms {
  template <int SPAN> static inline __attribute__((always_inline)) void in(f32x16 (&d)[SPAN]) { winograd_in(d); }
  template <int SPAN> static inline __attribute__((always_inline)) void out(f32x16 (&m)[SPAN]) { winograd_out(m); }
};

template <> struct Transforms<Pairs> {
  static inline __attribute__((always_inline)) void in(f32x16 (&d)[4]) { winograd_in(d); }
  static inline __attribute__((always_inline)) void out(f32x16 (&m)[4]) { winograd_out(m); }
  static inline __attribute__((always_inline)) void in(f32x16 (&d)[6]) {
    constexpr float BOTH = 97.0f / 36;
    const f32x16 a = d[4] - 2.25f * d[2], b = (2.0f / 3) * d[3] - 1.5f * d[1];
    const f32x16 c = d[4] - (4.0f / 9) * d[2], e = 1.5f * d[3] - (2.0f / 3) * d[1];
    const f32x16 first = d[0] - BOTH * d[2] + d[4], last = d[1] - BOTH * d[3] + d[5];
    d[0] = first, d[1] = a + b, d[2] = a - b, d[3] = c + e, d[4] = c - e, d[5] = last;
  }
  static inline __attribute__((always_inline)) void out(f32x16 (&m)[6]) {
    const f32x16 a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    m[0] = m[0] + a + c, m[1] = (2.0f / 3) * b + 1.5f * e, m[2] = (4.0f / 9) * a + 2.25f * c;
    m[3] = (8.0f / 27) * b + 3.375f * e + m[5];
  }
};

// What stands for a pixel outside of an image.
static const float NO_PIXEL[16] = {};

// FROM x FROM pixels of an image [height, width, channels], from (top, left) on.
template <int FROM> struct TilePixels {
  const float* at[FROM][FROM];
  int64_t mask[FROM][FROM];  // all bits, or none where there is no pixel

  inline __attribute__((always_inline)) TilePixels(const float* image, int64_t top, int64_t left, int64_t height,
                                                   int64_t width, int64_t channels) {
    for (int64_t y = 0; y < FROM; ++y)
      for (int64_t x = 0; x < FROM; ++x) {
        const int64_t row = top + y, column = left + x;
        const bool inside = 0 <= row && row < height && 0 <= column && column < width;
        at[y][x] = inside ? image + (row * width + column) * channels : NO_PIXEL;
        mask[y][x] = inside ? -1 : 0;
      }
  }

  // Channels [c, c + 16) of a pixel; where they are not WHOLE, `left` of them.
  template <bool WHOLE>
  inline __attribute__((always_inline)) f32x16 load(int y, int x, int64_t c, int64_t left) const {
    const float* from = at[y][x] + (c & mask[y][x]);
    return WHOLE ? load16(from) : load_some(from, left);
  }
};

// Transform rows [first, last) of tiles whose source is read as it is. v: as in winograd_read.
template <int SIZE>
static void winograd_read_plain(const Work& w, const Tiles& t, int64_t first, int64_t last, int64_t origin,
                                int64_t tiles, float* v) {
  constexpr int SPAN = SIZE + 2;
  const Instruction& i = w.i;
  const int64_t channels = i.channels, per_image = ceil_div(i.height, SIZE);
  for (int64_t row = first; row < last; ++row)
    for (int64_t tile = 0; tile < t.per_row; ++tile) {
      const TilePixels<SPAN> pixels(at(w, i.source, row / per_image, i.height * i.width * channels),
                                    row % per_image * SIZE - i.pad, tile * SIZE - i.pad, i.height, i.width, channels);
      float* to = v + ((row - origin) * t.per_row + tile) * channels;
      for (int64_t c = 0; c < channels; c += 16) {
        f32x16 d[SPAN][SPAN];
        for (int k = 0; k < SPAN; ++k) {
          f32x16 column[SPAN];
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y) column[y] = pixels.template load<true>(y, k, c, 16);
          winograd_in(column);
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y) d[y][k] = column[y];
        }
        for (int y = 0; y < SPAN; ++y) {
          winograd_in(d[y]);
#pragma GCC unroll 6
          for (int k = 0; k < SPAN; ++k) store16(to + (y * SPAN + k) * point_stride(tiles, channels) + c, d[y][k]);
        }
      }
    }
}

// Transform rows [first, last) of tiles. v: [points][tiles, words of C], point_stride apart, whose first tile is that
// of row `origin`; rows: room for [SIZE + 2, SIZE * per_row + 2, C] pixels.
template <typename F, int SIZE>
static void winograd_read(const Work& w, const Tiles& t, int64_t first, int64_t last, int64_t origin, int64_t tiles,
                          float* v, float* rows) {
  constexpr int SPAN = SIZE + 2;
  const Instruction& i = w.i;
  if (!F::PAIRED && i.norm < 0 && !i.act && !i.upsample && i.source2 < 0 && i.channels % 16 == 0)
    return winograd_read_plain<SIZE>(w, t, first, last, origin, tiles, v);
  const int64_t channels = i.channels + i.channels2, width = SIZE * t.per_row + 2, per_image = ceil_div(i.height, SIZE);
  const int64_t words = F::words(channels);
  for (int64_t row = first; row < last; ++row) {
    const int64_t sample = row / per_image, top = row % per_image * SIZE - i.pad;
    // Within an image the last two rows of the tiles above are the first two of these.
    const bool follows = row > first && row % per_image != 0;
    if (follows) __builtin_memcpy(rows, rows + SIZE * width * channels, sizeof(float) * 2 * width * channels);
    for (int64_t y = follows ? 2 : 0; y < SPAN; ++y) read_row(w, sample, top + y, width, rows + y * width * channels);
    for (int64_t x = 0; x < t.per_row; ++x) {
      const int64_t tile = (row - origin) * t.per_row + x;
      for (int64_t c = 0; c < channels; c += 16) {
        f32x16 d[SPAN][SPAN];
        for (int k = 0; k < SPAN; ++k) {
          f32x16 column[SPAN];
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y) column[y] = load16(rows + (y * width + x * SIZE + k) * channels + c);
          Transforms<F>::in(column);
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y) d[y][k] = column[y];
        }
        for (int y = 0; y < SPAN; ++y) {
          Transforms<F>::in(d[y]);
#pragma GCC unroll 6
          for (int k = 0; k < SPAN; ++k)
            store_factors<F>(v + (y * SPAN + k) * point_stride(tiles, words) + tile * words + F::words(c), d[y][k]);
        }
      }
    }
  }
}

// M[point] = V[point] U[point] for one panel of columns. v: [points][tiles, words of C]; U, the weights: [points,
// panels, words of C, PANEL]; m: where the panel's columns of M [points][tiles, width] begin. The panel `distance`
// further on is fetched meanwhile.
template <typename F>
FD_INLINE void winograd_multiply(const Work& w, int64_t point, int64_t panel, int64_t tiles, const float* v, float* m,
                                 int64_t width, int64_t distance) {
  const Instruction& i = w.i;
  const int64_t words = F::words(i.channels + i.channels2), panels = panels_of(i.channels_out), none = 0;
  const float* packed = w.weights + i.weight + (point * panels + panel) * words * PANEL;
  const float* from = v + point * point_stride(tiles, words);
  float* to = m + point * point_stride(tiles, width);
  const int64_t columns = i.channels_out - panel * PANEL < PANEL ? i.channels_out - panel * PANEL : PANEL;
  // Spread over the first groups of rows: PANEL / 16 lines are a row of the panel.
  const int64_t groups = ceil_div(tiles, F::ROWS), lines = groups >= 4 ? 1 : groups >= 2 ? 2 : 4;
  const float* next = packed + distance * words * PANEL;
  for (int64_t t = 0, left = PANEL / 16; t < tiles; t += F::ROWS, left -= lines) {
    const int64_t rows = tiles - t < F::ROWS ? tiles - t : F::ROWS;
    const Ahead ahead = {next + (PANEL - 16 * left) * words, left > 0 ? lines : 0};
    const float* a[F::ROWS];
    for (int64_t r = 0; r < rows; ++r) a[r] = from + (t + r) * words;
    multiply_panel<F>(
        rows, a, &none, 1, words, packed, PANEL, columns,
        [&](int r, int64_t u, f32x16 sum) { store16(to + (t + r) * width + 16 * u, sum); }, ahead);
  }
}

// Results of rows [first, last) of tiles, channels [first_channel, last_channel). m: [points][tiles, width], whose
// first tile is that of row `origin` and whose first column is first_channel.
template <typename F, int SIZE>
static void winograd_write(const Work& w, const Tiles& t, int64_t first, int64_t last, int64_t origin, int64_t tiles,
                           const float* m, int64_t width, int64_t first_channel, int64_t last_channel) {
  constexpr int SPAN = SIZE + 2;
  const Instruction& i = w.i;
  const int64_t per_image = ceil_div(i.height, SIZE);
  for (int64_t row = first; row < last; ++row) {
    const int64_t top = row % per_image * SIZE;
    const Writer writer = writer_of(w, row / per_image);
    for (int64_t x = 0; x < t.per_row; ++x) {
      const int64_t tile = (row - origin) * t.per_row + x;
      for (int64_t c = first_channel; c < last_channel; c += 16) {
        f32x16 d[SIZE][SPAN];
        for (int k = 0; k < SPAN; ++k) {
          f32x16 column[SPAN];
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y)
            column[y] = load16(m + (y * SPAN + k) * point_stride(tiles, width) + tile * width + c - first_channel);
          Transforms<F>::out(column);
#pragma GCC unroll 4
          for (int y = 0; y < SIZE; ++y) d[y][k] = column[y];
        }
        for (int64_t y = 0; y < SIZE && top + y < i.height; ++y) {
          Transforms<F>::out(d[y]);
          for (int64_t k = 0; k < SIZE && x * SIZE + k < i.width; ++k)
            writer.write((top + y) * i.width + x * SIZE + k, c, d[y][k]);
        }
      }
    }
  }
}

// A unit of a phase, or some rows of tiles from pixels to results. scratch: `rows` of winograd_read; then, unless
// w.shared holds them for all tiles (M [points][tiles, panels * PANEL]), V [points][tiles, words of C] and M
// [points][tiles, PANEL].
template <typename F, int SIZE>
static void winograd(const Work& w, int64_t threads, int64_t unit, float* scratch) {
  const Tiles t = tiles_of(w.i, w.batch, threads);
  const int64_t channels = w.i.channels + w.i.channels2, words = F::words(channels);
  const int64_t panels = panels_of(w.i.channels_out);
  if (t.phased) {
    float *v = w.shared, *m = w.shared + t.points * point_stride(t.total, words);
    const int64_t width = panels * PANEL;
    if (w.phase == 0) winograd_read<F, SIZE>(w, t, unit, unit + 1, 0, t.total, v, scratch);
    if (w.phase == 1)
      winograd_multiply<F>(w, unit / panels, unit % panels, t.total, v, m + unit % panels * PANEL, width, threads);
    if (w.phase == 2) winograd_write<F, SIZE>(w, t, unit, unit + 1, 0, t.total, m, width, 0, w.i.channels_out);
    return;
  }
  const int64_t first = unit * t.rows / t.blocks, last = (unit + 1) * t.rows / t.blocks;
  const int64_t tiles = (last - first) * t.per_row;
  float* v = scratch + (SIZE + 2) * (SIZE * t.per_row + 2) * channels;
  float* m = v + t.points * point_stride(tiles, words);
  winograd_read<F, SIZE>(w, t, first, last, first, tiles, v, scratch);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t begin = panel * PANEL, end = begin + PANEL < w.i.channels_out ? begin + PANEL : w.i.channels_out;
    for (int64_t point = 0; point < t.points; ++point)
      winograd_multiply<F>(w, point, panel, tiles, v, m, PANEL, panels);
    winograd_write<F, SIZE>(w, t, first, last, first, tiles, m, PANEL, begin, end);
  }
}

}  // namespace fastdiff::FD_VARIANT
