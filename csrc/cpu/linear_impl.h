// Weight gradient of linear layers: all rows in their order, so that no sum depends on the number of threads.
#pragma once

#include <cstdint>

#include "gradient_impl.h"
#include "linear.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Columns [first, first + block) of some rows, zero behind the last. from: [rows, channels]; to: [rows, block].
FD_INLINE void take_columns(const float* from, int64_t rows, int64_t channels, int64_t first, int64_t block,
                            float* to) {
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t c = 0; c < block; c += 16)
      store16(to + k * block + c, load_some(from + k * channels + first + c, channels - first - c));
}

// scratch: [linear_scratch(a)].
void run_linear_weight_grad(const LinearGradArgs& a, int64_t unit, float* scratch) {
  const int64_t blocks_in = ceil_div(a.channels_in, a.block_in);
  const int64_t first_in = unit % blocks_in * a.block_in, first_out = unit / blocks_in * a.block_out;
  float *v = scratch, *z = v + LINEAR_ROWS * a.block_in, *sums = z + LINEAR_ROWS * a.block_out;
  const bool whole_in = first_in + a.block_in <= a.channels_in, whole_out = first_out + a.block_out <= a.channels_out;
  const auto add_rows = [&](int64_t start, const float* from_dy, int64_t dy_stride, const float* from_x,
                            int64_t x_stride, int64_t count) {
    start == 0
        ? add_product<true>(from_dy, dy_stride, from_x, x_stride, a.block_out, a.block_in, count, sums, a.block_in)
        : add_product<false>(from_dy, dy_stride, from_x, x_stride, a.block_out, a.block_in, count, sums, a.block_in);
  };
  for (int64_t start = 0; start < a.rows; start += LINEAR_ROWS) {
    const int64_t count = a.rows - start < LINEAR_ROWS ? a.rows - start : LINEAR_ROWS;
    const float *x = a.x + start * a.channels_in, *dy = a.dy + start * a.channels_out;
    if (whole_in && whole_out) {
      // Where they lie.
      add_rows(start, dy + first_out, a.channels_out, x + first_in, a.channels_in, count);
      continue;
    }
    take_columns(x, count, a.channels_in, first_in, a.block_in, v);
    take_columns(dy, count, a.channels_out, first_out, a.block_out, z);
    add_rows(start, z, a.block_out, v, a.block_in, count);
  }
  for (int64_t o = 0; o < a.block_out && first_out + o < a.channels_out; ++o)
    for (int64_t c = 0; c < a.block_in && first_in + c < a.channels_in; c += 16)
      store_some(a.dweight + (first_out + o) * a.dweight_stride + first_in + c, load16(sums + o * a.block_in + c),
                 a.channels_in - first_in - c);
}

// Sums of VECTORS neighbouring vectors of columns over rows [first, last), in registers.
template <int VECTORS>
FD_INLINE void sum_columns(const ColumnSumsArgs& a, int64_t first, int64_t last, int64_t column, float* to) {
  f32x16 sums[VECTORS] = {};
  const float* from = a.x + first * a.columns + column;
  for (int64_t row = first; row < last; ++row, from += a.columns)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sums[v] += load16(from + 16 * v);
  for (int v = 0; v < VECTORS; ++v) store16(to + column + 16 * v, sums[v]);
}

// Rows in their order.
void run_column_sums(const ColumnSumsArgs& a, int64_t part) {
  const int64_t first = part * SUM_ROWS, last = first + SUM_ROWS < a.rows ? first + SUM_ROWS : a.rows;
  float* to = a.sums + part * a.columns;
  int64_t column = 0;
  for (; column + 128 <= a.columns; column += 128) sum_columns<8>(a, first, last, column, to);
  for (; column + 32 <= a.columns; column += 32) sum_columns<2>(a, first, last, column, to);
  for (; column + 16 <= a.columns; column += 16) sum_columns<1>(a, first, last, column, to);
  for (; column < a.columns; ++column) {
    float sum = 0.0f;
    for (int64_t row = first; row < last; ++row) sum += a.x[row * a.columns + column];
    to[column] = sum;
  }
}

}  // namespace fastdiff::FD_VARIANT
