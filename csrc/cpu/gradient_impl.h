// Products of gradients with what a layer has read, summed over rows: z^T v, the sums in registers.
#pragma once

#include <cstdint>

#include "gemm_impl.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// sum[m][n] += sum over k of z[k][m] v[k][n] for ROWS values of m and 16 VECTORS of n; FIRST: what is in sum does not
// count. z: [length, z_stride]; v: [length, v_stride]; sum: [ROWS, sum_stride].
template <bool FIRST, int ROWS, int VECTORS>
FD_INLINE void add_products(const float* z, int64_t z_stride, const float* v, int64_t v_stride, int64_t length,
                            float* sum, int64_t sum_stride) {
  f32x16 acc[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) acc[m][n] = FIRST ? (f32x16){} : load16(sum + m * sum_stride + 16 * n);
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

// sum += z^T v for `rows` columns of z and 16 VECTORS of v.
template <bool FIRST, int VECTORS>
static void add_product_columns(const float* z, int64_t z_stride, const float* v, int64_t v_stride, int64_t rows,
                                int64_t length, float* sum, int64_t sum_stride) {
  int64_t m = 0;
  for (; m + 6 <= rows; m += 6)
    add_products<FIRST, 6, VECTORS>(z + m, z_stride, v, v_stride, length, sum + m * sum_stride, sum_stride);
  for (; m + 4 <= rows; m += 4)
    add_products<FIRST, 4, VECTORS>(z + m, z_stride, v, v_stride, length, sum + m * sum_stride, sum_stride);
  for (; m + 2 <= rows; m += 2)
    add_products<FIRST, 2, VECTORS>(z + m, z_stride, v, v_stride, length, sum + m * sum_stride, sum_stride);
  for (; m < rows; ++m)
    add_products<FIRST, 1, VECTORS>(z + m, z_stride, v, v_stride, length, sum + m * sum_stride, sum_stride);
}

// sum += z^T v, or, where it is the FIRST, sum = z^T v. z: [length, z_stride], of which `rows` columns count; v:
// [length, v_stride], of which `columns` do, a multiple of 16; sum: [rows, sum_stride].
template <bool FIRST>
static inline void add_product(const float* z, int64_t z_stride, const float* v, int64_t v_stride, int64_t rows,
                               int64_t columns, int64_t length, float* sum, int64_t sum_stride) {
  for (int64_t n = 0; n < columns;) {
    const bool wide = columns - n >= 16 * WIDE;
    wide ? add_product_columns<FIRST, WIDE>(z, z_stride, v + n, v_stride, rows, length, sum + n, sum_stride)
         : add_product_columns<FIRST, 1>(z, z_stride, v + n, v_stride, rows, length, sum + n, sum_stride);
    n += wide ? 16 * WIDE : 16;
  }
}

}  // namespace fastdiff::FD_VARIANT
