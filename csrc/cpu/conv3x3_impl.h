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

// U = G w G^T for some rows of a panel of columns; PackArgs has the shapes.
template <int SIZE>
static void pack_rows(const PackArgs& a, int64_t unit) {
  constexpr int SPAN = SIZE + 2;
  const int64_t groups = ceil_div(a.rows, PACK_ROWS), panels = panels_of(a.columns);
  const int64_t panel = unit / groups, first = unit % groups * PACK_ROWS;
  const int64_t last = first + PACK_ROWS < a.rows ? first + PACK_ROWS : a.rows;
  for (int64_t row = first; row < last; ++row)
    for (int64_t part = 0; part < PANEL; part += 16) {
      const int64_t column = panel * PANEL + part, count = a.columns - column;
      const float* from = a.weight + row * a.row_stride + column * a.column_stride;
      f32x16 w[3][3], half[SPAN][3];
      for (int y = 0; y < 3; ++y)
        for (int x = 0; x < 3; ++x) {
          const float* tap = from + y * a.y_stride + x * a.x_stride;
          f32x16 v = {};
          if (a.column_stride == 1 && count > 0)
            v = load_some(tap, count);
          else
            for (int64_t k = 0; k < 16 && k < count; ++k) v[k] = tap[k * a.column_stride];
          w[y][x] = v;
        }
      for (int x = 0; x < 3; ++x) {
        const f32x16 column_of[3] = {w[0][x], w[1][x], w[2][x]};
        f32x16 u[SPAN];
        winograd_weights(column_of, u);
        for (int y = 0; y < SPAN; ++y) half[y][x] = u[y];
      }
      for (int y = 0; y < SPAN; ++y) {
        f32x16 u[SPAN];
        winograd_weights(half[y], u);
        for (int x = 0; x < SPAN; ++x)
          store16(a.packed + (((y * SPAN + x) * panels + panel) * a.rows + row) * PANEL + part, u[x]);
      }
    }
}

void run_conv3x3_pack(const PackArgs& a, int64_t first_unit, int64_t last_unit) {
  for (int64_t unit = first_unit; unit < last_unit; ++unit) a.size == 4 ? pack_rows<4>(a, unit) : pack_rows<2>(a, unit);
}

// The pixel's channels [c, c + 16), zero outside of the image [H, W, C].
FD_INLINE f32x16 pixel_or_zero(const float* image, int64_t y, int64_t x, int64_t height, int64_t width,
                               int64_t channels, int64_t c) {
  if (y < 0 || y >= height || x < 0 || x >= width || c >= channels) return (f32x16){};
  return load_some(image + (y * width + x) * channels + c, channels - c);
}

// The transform of one tile, FROM x FROM pixels to SPAN x SPAN points, for channels [first, first + block).
// image: [H, W, C]; to: [points][block], `stride` apart.
template <int FROM, int SPAN, typename Transform>
FD_INLINE void transform_tile(const float* image, int64_t top, int64_t left, const ConvGradArgs& a, int64_t channels,
                              int64_t first, int64_t block, float* to, int64_t stride, const Transform& transform) {
  for (int64_t c = 0; c < block; c += 16) {
    f32x16 half[SPAN][FROM];
    for (int x = 0; x < FROM; ++x) {
      f32x16 column[FROM], z[SPAN];
#pragma GCC unroll 6
      for (int y = 0; y < FROM; ++y)
        column[y] = pixel_or_zero(image, top + y, left + x, a.height, a.width, channels, first + c);
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

// The gradient for a block of input and one of output channels. scratch: V [points][GRAD_TILES, block_in], A dy A^T
// [points][GRAD_TILES, block_out] and their products [points][block_out, block_in], grad_stride apart.
template <int SIZE>
static void conv_grad(const ConvGradArgs& a, int64_t unit, float* scratch) {
  constexpr int SPAN = SIZE + 2, POINTS = SPAN * SPAN;
  const int64_t blocks_in = ceil_div(a.channels_in, a.block_in);
  const int64_t first_in = unit % blocks_in * a.block_in, first_out = unit / blocks_in * a.block_out;
  const int64_t per_row = ceil_div(a.width, SIZE), per_image = ceil_div(a.height, SIZE) * per_row;
  const int64_t v_stride = grad_stride(GRAD_TILES, a.block_in), z_stride = grad_stride(GRAD_TILES, a.block_out);
  const int64_t sum_stride = grad_stride(a.block_out, a.block_in);
  float *v = scratch, *z = v + POINTS * v_stride, *sums = z + POINTS * z_stride;
  for (int64_t k = 0; k < POINTS * sum_stride; ++k) sums[k] = 0.0f;
  const int64_t total = a.batch * per_image;
  for (int64_t start = 0; start < total; start += GRAD_TILES) {
    const int64_t count = total - start < GRAD_TILES ? total - start : GRAD_TILES;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t sample = (start + k) / per_image, tile = (start + k) % per_image;
      const int64_t top = tile / per_row * SIZE, left = tile % per_row * SIZE, pixels = a.height * a.width;
      transform_tile<SPAN, SPAN>(a.x + sample * pixels * a.channels_in, top - 1, left - 1, a, a.channels_in, first_in,
                                 a.block_in, v + k * a.block_in, v_stride,
                                 [](const f32x16 (&from)[SPAN], f32x16 (&to)[SPAN]) {
                                   for (int n = 0; n < SPAN; ++n) to[n] = from[n];
                                   winograd_in(to);
                                 });
      transform_tile<SIZE, SPAN>(
          a.dy + sample * pixels * a.channels_out, top, left, a, a.channels_out, first_out, a.block_out,
          z + k * a.block_out, z_stride,
          [](const f32x16 (&from)[SIZE], f32x16 (&to)[SPAN]) { winograd_out_adjoint(from, to); });
    }
    for (int64_t p = 0; p < POINTS; ++p)
      add_product(z + p * z_stride, v + p * v_stride, a.block_out, a.block_in, count, sums + p * sum_stride);
  }
  for (int64_t o = 0; o < a.block_out && first_out + o < a.channels_out; ++o)
    for (int64_t c = 0; c < a.block_in && first_in + c < a.channels_in; c += 16) {
      f32x16 half[3][SPAN];
      for (int x = 0; x < SPAN; ++x) {
        f32x16 column[SPAN], w[3];
        for (int y = 0; y < SPAN; ++y) column[y] = load16(sums + (y * SPAN + x) * sum_stride + o * a.block_in + c);
        winograd_weights_adjoint(column, w);
        for (int y = 0; y < 3; ++y) half[y][x] = w[y];
      }
      for (int y = 0; y < 3; ++y) {
        f32x16 w[3];
        winograd_weights_adjoint(half[y], w);
        for (int x = 0; x < 3; ++x)
          store_some(a.dweight + (((first_out + o) * 3 + y) * 3 + x) * a.channels_in + first_in + c, w[x],
                     a.channels_in - first_in - c);
      }
    }
}

// scratch: [grad_scratch(a)].
void run_conv3x3_weight_grad(const ConvGradArgs& a, int64_t unit, float* scratch) {
  a.size == 4 ? conv_grad<4>(a, unit, scratch) : conv_grad<2>(a, unit, scratch);
}

}  // namespace fastdiff::FD_VARIANT
