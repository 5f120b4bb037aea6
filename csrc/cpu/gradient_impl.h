// Products of gradients with what a layer has read, summed over rows: z^T v, the sums in registers.
#pragma once

#include <cstdint>

#include "gemm_impl.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// sum[m][n] += sum over k of z[k][m] v[k][n] for ROWS values of m and 16 VECTORS of n. z: [length, z_stride]; v:
// [length, v_stride]; sum: [ROWS, sum_stride].
template <int ROWS, int VECTORS>
FD_INLINE void add_products(const float* z, int64_t z_stride, const float* v, int64_t v_stride, int64_t length,
                            float* sum, int64_t sum_stride) {
  f32x16 acc[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) acc[m][n] = load16(sum + m * sum_stride + 16 * n);
  for (int64_t k = 0; k < length; ++k) {
    f32x16 row[VECTORS];
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) row[n] = load16(v + k * v_stride + 16 * n);
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; ++m) {
      const f32x16 value = splat(z[k * z_stride + m]);
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; ++n) acc[m][n] += value * row[n];
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) store16(sum + m * sum_stride + 16 * n, acc[m][n]);
}

// sum += z^T v for 16 VECTORS columns of v. z: [length, block_out]; v: [length, block_in]; sum: [block_out, block_in].
template <int VECTORS>
static void add_product_columns(const float* z, const float* v, int64_t block_out, int64_t block_in, int64_t length,
                                float* sum) {
  int64_t m = 0;
  for (; m + 6 <= block_out; m += 6)
    add_products<6, VECTORS>(z + m, block_out, v, block_in, length, sum + m * block_in, block_in);
  // block_out is a multiple of 16, so two or four are left.
  for (; m + 4 <= block_out; m += 4)
    add_products<4, VECTORS>(z + m, block_out, v, block_in, length, sum + m * block_in, block_in);
  for (; m + 2 <= block_out; m += 2)
    add_products<2, VECTORS>(z + m, block_out, v, block_in, length, sum + m * block_in, block_in);
}

// sum += z^T v. z: [length, block_out]; v: [length, block_in]; sum: [block_out, block_in]; blocks are multiples of 16.
static inline void add_product(const float* z, const float* v, int64_t block_out, int64_t block_in, int64_t length,
                               float* sum) {
  for (int64_t n = 0; n < block_in;) {
    const bool wide = block_in - n >= 16 * WIDE;
    wide ? add_product_columns<WIDE>(z, v + n, block_out, block_in, length, sum + n)
         : add_product_columns<1>(z, v + n, block_out, block_in, length, sum + n);
    n += wide ? 16 * WIDE : 16;
  }
}

}  // namespace fastdiff::FD_VARIANT
