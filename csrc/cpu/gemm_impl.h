// Products of a few rows with a panel of columns, the sums in registers.
//
// Row m of the left side is a[m] + taps[tap], [length] floats for each tap: the pixels under a convolution's kernel,
// or, with one tap of 0, a row of a matrix. The right side, b, is [num_taps, length, b_stride], of which the first
// columns are used. Both are numbers or pairs of them (factors_impl.h); of pairs, all lengths count words.
#pragma once

#include <cstdint>

#include "factors_impl.h"
#include "gemm_amx_impl.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Rows at a time, of numbers; F::ROWS of either kind.
constexpr int64_t GEMM_ROWS = Floats::ROWS;

// acc[m][v] += sum over tap and k of a[m][taps[tap] + k] * b[tap][k][16 v, 16 v + 16).
template <typename F, int ROWS, int VECTORS>
FD_INLINE void multiply(const float* const* a, const int64_t* taps, int64_t num_taps, int64_t length, const float* b,
                        int64_t b_stride, Ahead ahead, f32x16 (&acc)[ROWS][VECTORS]) {
  for (int64_t tap = 0; tap < num_taps; ++tap) {
    const float* rows[ROWS];
    for (int m = 0; m < ROWS; ++m) rows[m] = a[m] + taps[tap];
    for (int64_t k = 0; k < length; ++k, b += b_stride) {
      for (int64_t line = 0; line < ahead.lines; ++line, ahead.next += 16) __builtin_prefetch(ahead.next, 0, 2);
#pragma GCC unroll 2
      for (int step = 0; step < F::STEPS; ++step) {
        f32x16 column[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) column[v] = F::columns(b + 16 * v, step);
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; ++m) {
          const f32x16 value = F::number(rows[m] + k, step);
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; ++v) F::add(acc[m][v], value, column[v]);
        }
      }
    }
  }
}

// `finish(m, v, sum)` gets columns [16 v, 16 v + 16) of row m. Unrolled, so that no sum ever lies in memory.
template <typename F, int ROWS, int VECTORS, typename Finish>
FD_INLINE void multiply_exactly(const float* const* a, const int64_t* taps, int64_t num_taps, int64_t length,
                                const float* b, int64_t b_stride, Ahead ahead, const Finish& finish) {
  f32x16 acc[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) acc[m][v] = (f32x16){};
  multiply<F, ROWS, VECTORS>(a, taps, num_taps, length, b, b_stride, ahead, acc);
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) finish(m, v, acc[m][v]);
}

// The same for 1 to GEMM_ROWS rows.
template <typename F, int VECTORS, typename Finish>
static inline void multiply_rows(int64_t num_rows, const float* const* a, const int64_t* taps, int64_t num_taps,
                                 int64_t length, const float* b, int64_t b_stride, Ahead ahead, const Finish& finish) {
#define FD_ROWS(ROWS) \
  case ROWS: multiply_exactly<F, ROWS, VECTORS>(a, taps, num_taps, length, b, b_stride, ahead, finish); break;
  switch (num_rows) {
    FD_ROWS(1)
    FD_ROWS(2)
    FD_ROWS(3)
    FD_ROWS(4)
    FD_ROWS(5)
    FD_ROWS(6)
    default: break;
  }
#undef FD_ROWS
}

// Vectors that GEMM_ROWS rows of sums are wide.
#if defined(FD_AVX512)
constexpr int WIDE = 4;
#else
// Sixteen lanes are two registers or four: one vector of six rows fills them.
constexpr int WIDE = 1;
#endif

// Columns [0, columns) of a panel, in steps of WIDE vectors.
template <typename F = Floats, typename Finish>
static inline void multiply_panel(int64_t num_rows, const float* const* a, const int64_t* taps, int64_t num_taps,
                                  int64_t length, const float* b, int64_t b_stride, int64_t columns,
                                  const Finish& finish, Ahead ahead = {}) {
#if defined(FD_AMX)
  if constexpr (F::PAIRED)
    return multiply_panel_by_tiles(num_rows, a, taps, num_taps, length, b, b_stride, columns, finish, ahead);
#endif
  const int64_t vectors = ceil_div(columns, 16);
  int64_t v = 0;
  for (; v + WIDE <= vectors; v += WIDE)
    multiply_rows<F, WIDE>(num_rows, a, taps, num_taps, length, b + 16 * v, b_stride, ahead,
                           [&](int m, int u, f32x16 sum) { finish(m, v + u, sum); });
  // Two at a time keep the multipliers busy where one would wait for its own sums.
  for (; WIDE > 2 && v + 2 <= vectors; v += 2)
    multiply_rows<F, 2>(num_rows, a, taps, num_taps, length, b + 16 * v, b_stride, Ahead{},
                        [&](int m, int u, f32x16 sum) { finish(m, v + u, sum); });
  for (; v < vectors; ++v)
    multiply_rows<F, 1>(num_rows, a, taps, num_taps, length, b + 16 * v, b_stride, Ahead{},
                        [&](int m, int, f32x16 sum) { finish(m, v, sum); });
}

}  // namespace fastdiff::FD_VARIANT
