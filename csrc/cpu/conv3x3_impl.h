// Packing and weight gradient of 3x3 convolutions by Winograd's F(4x4, 3x3) and F(2x2, 3x3).
// With V = B^T d B of a tile of pixels and y = A^T [(G g G^T) * V] A of its results, the gradient of g is the adjoint:
// G^T [sum over the tiles of (A dy A^T) * V] G. Source: Lavin and Gray (2016), arXiv:1509.09308, section 4.
#pragma once

#include <cstdint>

#include "conv3x3.h"
#include "gradient_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "rounding.h"
#include "vec_impl.h"
#include "winograd_impl.h"

namespace fastdiff::FD_VARIANT {

// G w: one dimension of the weights' transform, three values to six, or four.
FD_INLINE void winograd_weights(const f32x16 (&w)[3], f32x16 (&u)[6]) {
  const f32x16 even = (w[0] + w[2]) * (-1.0f / 6.0f), odd = w[1] * (1.0f / 6.0f);
  const f32x16 outer = w[0] * (1.0f / 24.0f) + w[2] * (1.0f / 6.0f), middle = w[1] * (1.0f / 12.0f);
  u[0] = 0.25f * w[0], u[1] = even - odd, u[2] = even + odd, u[3] = outer + middle, u[4] = outer - middle, u[5] = w[2];
}

FD_INLINE void winograd_weights(const f32x16 (&w)[3], f32x16 (&u)[4]) {
  const f32x16 even = 0.5f * (w[0] + w[2]), odd = 0.5f * w[1];
  u[0] = w[0], u[1] = even + odd, u[2] = even - odd, u[3] = w[2];
}

// G^T u, the adjoint of the same.
FD_INLINE void winograd_weights_adjoint(const f32x16 (&u)[6], f32x16 (&w)[3]) {
  const f32x16 inner = (u[1] + u[2]) * (1.0f / 6.0f), outer = u[3] + u[4];
  w[0] = 0.25f * u[0] - inner + outer * (1.0f / 24.0f);
  w[1] = (u[2] - u[1]) * (1.0f / 6.0f) + (u[3] - u[4]) * (1.0f / 12.0f);
  w[2] = outer * (1.0f / 6.0f) - inner + u[5];
}

FD_INLINE void winograd_weights_adjoint(const f32x16 (&u)[4], f32x16 (&w)[3]) {
  const f32x16 even = 0.5f * (u[1] + u[2]);
  w[0] = u[0] + even, w[1] = 0.5f * (u[1] - u[2]), w[2] = even + u[3];
}

// A d, the adjoint of the results' transform.
FD_INLINE void winograd_out_adjoint(const f32x16 (&d)[4], f32x16 (&z)[6]) {
  const f32x16 a = d[0] + d[2], b = d[1] + d[3], c = d[0] + 4.0f * d[2], e = 2.0f * d[1] + 8.0f * d[3];
  z[0] = d[0], z[1] = a + b, z[2] = a - b, z[3] = c + e, z[4] = c - e, z[5] = d[3];
}

FD_INLINE void winograd_out_adjoint(const f32x16 (&d)[2], f32x16 (&z)[4]) {
  z[0] = d[0], z[1] = d[0] + d[1], z[2] = d[0] - d[1], z[3] = -d[1];
}

// v[r][c] to v[c][r]: each pass turns the bits of (r, c), as one number of eight, by one.
FD_INLINE void transpose(f32x16 (&v)[16]) {
  const i32x16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const i32x16 high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#pragma GCC unroll 4
  for (int pass = 0; pass < 4; ++pass) {
    f32x16 turned[16];
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      turned[2 * k] = __builtin_shuffle(v[k], v[k + 8], low);
      turned[2 * k + 1] = __builtin_shuffle(v[k], v[k + 8], high);
    }
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) v[k] = turned[k];
  }
}

// One tap of the weights of PACK_ROWS rows and 16 columns, of which `rows` and `columns` there are. to: [PACK_ROWS].
FD_INLINE void take_tap(const PackArgs& a, const float* tap, int64_t rows, int64_t columns, f32x16* to) {
  if (a.column_stride == 1) {
    for (int64_t r = 0; r < rows; ++r) to[r] = load_some(tap + r * a.row_stride, columns);
  } else if (a.row_stride == 1) {
    f32x16 v[PACK_ROWS];
    for (int64_t c = 0; c < 16; ++c) v[c] = c < columns ? load_some(tap + c * a.column_stride, rows) : (f32x16){};
    transpose(v);
    for (int64_t r = 0; r < rows; ++r) to[r] = v[r];
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      to[r] = (f32x16){};
      for (int64_t c = 0; c < 16 && c < columns; ++c) to[r][c] = tap[r * a.row_stride + c * a.column_stride];
    }
  }
}

// U = G w G^T for some rows of a panel of columns; PackArgs has the shapes.
template <int SIZE>
static void pack_rows(const PackArgs& a, int64_t unit) {
  constexpr int SPAN = SIZE + 2;
  const int64_t groups = ceil_div(a.rows, PACK_ROWS), panels = panels_of(a.columns);
  const int64_t panel = unit / groups, first = unit % groups * PACK_ROWS;
  const int64_t rows = a.rows - first < PACK_ROWS ? a.rows - first : PACK_ROWS;
  for (int64_t part = 0; part < PANEL; part += 16) {
    const int64_t column = panel * PANEL + part, left = a.columns - column, columns = left > 0 ? left : 0;
    f32x16 taps[9][PACK_ROWS];
    for (int y = 0; y < 3; ++y)
      for (int x = 0; x < 3; ++x)
        take_tap(a, a.weight + first * a.row_stride + column * a.column_stride + y * a.y_stride + x * a.x_stride, rows,
                 columns, taps[3 * y + x]);
    for (int64_t r = 0; r < rows; ++r) {
      f32x16 half[SPAN][3];
      for (int x = 0; x < 3; ++x) {
        const f32x16 column_of[3] = {taps[x][r], taps[3 + x][r], taps[6 + x][r]};
        f32x16 u[SPAN];
        winograd_weights(column_of, u);
        for (int y = 0; y < SPAN; ++y) half[y][x] = u[y];
      }
      for (int y = 0; y < SPAN; ++y) {
        f32x16 u[SPAN];
        winograd_weights(half[y], u);
        for (int x = 0; x < SPAN; ++x)
          store16(a.packed + (((y * SPAN + x) * panels + panel) * a.rows + first + r) * PANEL + part, u[x]);
      }
    }
  }
}

void run_conv3x3_pack(const PackArgs& a, int64_t first_unit, int64_t last_unit) {
  for (int64_t unit = first_unit; unit < last_unit; ++unit) a.size == 4 ? pack_rows<4>(a, unit) : pack_rows<2>(a, unit);
}

// The transform of one tile, FROM x FROM pixels to SPAN x SPAN points. to: [points][C in whole vectors], `stride`
// apart.
template <bool WHOLE, int FROM, int SPAN, typename Transform>
FD_INLINE void transform_tile(const TilePixels<FROM>& pixels, int64_t channels, float* to, int64_t stride,
                              const Transform& transform) {
  for (int64_t c = 0; c < channels; c += 16) {
    f32x16 half[SPAN][FROM];
    for (int x = 0; x < FROM; ++x) {
      f32x16 column[FROM], z[SPAN];
#pragma GCC unroll 6
      for (int y = 0; y < FROM; ++y) column[y] = pixels.template load<WHOLE>(y, x, c, channels - c);
      transform(column, z);
#pragma GCC unroll 6
      for (int y = 0; y < SPAN; ++y) half[y][x] = z[y];
    }
    for (int y = 0; y < SPAN; ++y) {
      f32x16 z[SPAN];
      transform(half[y], z);
#pragma GCC unroll 6
      for (int x = 0; x < SPAN; ++x) store16(to + (y * SPAN + x) * stride + c, z[x]);
    }
  }
}

template <int FROM, int SPAN, typename Transform>
FD_INLINE void transform_pixels(const float* image, int64_t top, int64_t left, const ConvGradArgs& a, int64_t channels,
                                float* to, int64_t stride, const Transform& transform) {
  const TilePixels<FROM> pixels(image, top, left, a.height, a.width, channels);
  channels % 16 == 0 ? transform_tile<true, FROM, SPAN>(pixels, channels, to, stride, transform)
                     : transform_tile<false, FROM, SPAN>(pixels, channels, to, stride, transform);
}

// V = B^T d B and A dy A^T of some tiles.
template <int SIZE>
static void grad_transform(const ConvGradArgs& a, int64_t unit) {
  constexpr int SPAN = SIZE + 2;
  const int64_t per_row = ceil_div(a.width, SIZE), per_image = ceil_div(a.height, SIZE) * per_row;
  const int64_t row_in = grad_row(a.channels_in), row_out = grad_row(a.channels_out), pixels = a.height * a.width;
  for (int64_t k = unit * GRAD_TILES; k < (unit + 1) * GRAD_TILES && k < a.count; ++k) {
    const int64_t sample = (a.first + k) / per_image, tile = (a.first + k) % per_image;
    const int64_t top = tile / per_row * SIZE, left = tile % per_row * SIZE;
    transform_pixels<SPAN, SPAN>(a.x + sample * pixels * a.channels_in, top - 1, left - 1, a, a.channels_in,
                                 a.v + k * row_in, a.count * row_in,
                                 [](const f32x16 (&from)[SPAN], f32x16 (&to)[SPAN]) {
                                   for (int n = 0; n < SPAN; ++n) to[n] = from[n];
                                   winograd_in(to);
                                 });
    transform_pixels<SIZE, SPAN>(
        a.dy + sample * pixels * a.channels_out, top, left, a, a.channels_out, a.z + k * row_out, a.count * row_out,
        [](const f32x16 (&from)[SIZE], f32x16 (&to)[SPAN]) { winograd_out_adjoint(from, to); });
  }
}

// The products of some output channels at one point, added to the sums; the first tiles' are the sums.
static void grad_multiply(const ConvGradArgs& a, int64_t unit) {
  const int64_t blocks = ceil_div(a.channels_out, GRAD_ROWS), point = unit / blocks, from = unit % blocks * GRAD_ROWS;
  const int64_t row_in = grad_row(a.channels_in), row_out = grad_row(a.channels_out);
  const int64_t left = round_up(a.channels_out, 16) - from, rows = left < GRAD_ROWS ? left : GRAD_ROWS;
  float* sums = a.sums + (point * round_up(a.channels_out, 16) + from) * row_in;
  const float *z = a.z + point * a.count * row_out + from, *v = a.v + point * a.count * row_in;
  const int64_t columns = round_up(a.channels_in, 16);
  a.first == 0 ? add_product<true>(z, row_out, v, row_in, rows, columns, a.count, sums, row_in)
               : add_product<false>(z, row_out, v, row_in, rows, columns, a.count, sums, row_in);
}

// G^T sums G of input channels [first, last) of an output channel. sums: [points][last - first], `stride` apart.
template <int SIZE>
static void grad_finish(const ConvGradArgs& a, const float* sums, int64_t stride, int64_t o, int64_t first,
                        int64_t last) {
  constexpr int SPAN = SIZE + 2;
  for (int64_t c = first; c < last; c += 16) {
    f32x16 half[3][SPAN];
    for (int x = 0; x < SPAN; ++x) {
      f32x16 column[SPAN], w[3];
      for (int y = 0; y < SPAN; ++y) column[y] = load16(sums + (y * SPAN + x) * stride + c - first);
      winograd_weights_adjoint(column, w);
      for (int y = 0; y < 3; ++y) half[y][x] = w[y];
    }
    for (int y = 0; y < 3; ++y) {
      f32x16 w[3];
      winograd_weights_adjoint(half[y], w);
      for (int x = 0; x < 3; ++x) store_some(a.dweight + ((o * 3 + y) * 3 + x) * a.channels_in + c, w[x], last - c);
    }
  }
}

// Some output and input channels at all points, where there are no other tiles.
template <int SIZE>
static void grad_block(const ConvGradArgs& a, int64_t unit) {
  const int64_t blocks = ceil_div(a.channels_in, GRAD_COLUMNS), row_in = grad_row(a.channels_in);
  const int64_t row_out = grad_row(a.channels_out), out = unit / blocks * GRAD_ROWS, in = unit % blocks * GRAD_COLUMNS;
  const int64_t left_out = a.channels_out - out, rows = left_out < GRAD_ROWS ? left_out : GRAD_ROWS;
  const int64_t left_in = a.channels_in - in, columns = left_in < GRAD_COLUMNS ? left_in : GRAD_COLUMNS;
  for (int64_t point = 0; point < grad_points(a); ++point) {
    float* sums = a.sums + point * grad_block_stride();
    add_product<true>(a.z + point * a.count * row_out + out, row_out, a.v + point * a.count * row_in + in, row_in, rows,
                      round_up(columns, 16), a.count, sums, GRAD_COLUMNS);
  }
  for (int64_t o = 0; o < rows; ++o)
    grad_finish<SIZE>(a, a.sums + o * GRAD_COLUMNS, grad_block_stride(), out + o, in, in + columns);
}

template <int SIZE>
static void grad_unit(const ConvGradArgs& a, int64_t unit) {
  const int64_t row_in = grad_row(a.channels_in);
  switch (a.phase) {
    case GRAD_TRANSFORM: return grad_transform<SIZE>(a, unit);
    case GRAD_MULTIPLY: return grad_multiply(a, unit);
    case GRAD_BLOCK: return grad_block<SIZE>(a, unit);
    default: break;
  }
  grad_finish<SIZE>(a, a.sums + unit * row_in, round_up(a.channels_out, 16) * row_in, unit, 0, a.channels_in);
}

void run_conv3x3_weight_grad(const ConvGradArgs& a, int64_t unit) {
  a.size == 4 ? grad_unit<4>(a, unit) : grad_unit<2>(a, unit);
}

}  // namespace fastdiff::FD_VARIANT
