// Packed weights of a plan's layers.
//
// Rounding to float32 comes last, and sums of a few weights often lie half way between two such numbers: their last bit
// then depends on the order and the roundings of the float64 arithmetic. Both are written down here, so that packed
// weights are the same on every machine.
#pragma once

#include <cstdint>

#include "factors_impl.h"
#include "packing.h"
#include "plan_layout.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// G of Winograd's filter transform. Source: Lavin and Gray (2016), arXiv:1509.09308, section 4. Of pairs, F(4x4, 3x3)
// has the points 0, 2/3, -2/3, 3/2, -3/2 and infinity: see winograd_impl.h.
struct FilterTransform {
  int size;
  double rows[6][3];
};
static const FilterTransform OF_FOUR = {6,
                                        {{1.0 / 4, 0, 0},
                                         {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                         {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                         {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                         {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                         {0, 0, 1}}};
static const FilterTransform OF_FOUR_PAIRS = {6,
                                              {{1, 0, 0},
                                               {-81.0 / 130, -27.0 / 65, -18.0 / 65},
                                               {-81.0 / 130, 27.0 / 65, -18.0 / 65},
                                               {8.0 / 65, 12.0 / 65, 18.0 / 65},
                                               {8.0 / 65, -12.0 / 65, 18.0 / 65},
                                               {0, 0, 1}}};
static const FilterTransform OF_TWO = {4, {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}, {}, {}}};
// Rows of the first product whose sums are rounded once for each term.
constexpr int FUSED_ROWS = 4;

// a * b + c, rounded once on any machine.
FD_INLINE f64x8 fused(f64x8 a, f64x8 b, f64x8 c) {
#if defined(FD_AVX512)
  return (f64x8)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(FD_AVX2)
  union Halves {
    f64x8 all;
    __m256d h[2];
  } x = {a}, y = {b}, sum = {c};
  for (int half = 0; half < 2; ++half) sum.h[half] = _mm256_fmadd_pd(x.h[half], y.h[half], sum.h[half]);
  return sum.all;
#else
  for (int lane = 0; lane < 8; ++lane) c[lane] = __builtin_fma(a[lane], b[lane], c[lane]);
  return c;
#endif
}

// a * b, which compilers do not join with a sum.
FD_INLINE f64x8 product(double a, f64x8 b) {
  f64x8 p = a * b;
  __asm__("" : "+m"(p));
  return p;
}

// Sums begin at zero, whose sign is thereby a plus.
FD_INLINE f64x8 dot(const double (&g)[3], f64x8 a, f64x8 b, f64x8 c, bool fuse) {
  if (fuse) return fused(splat(g[2]), c, fused(splat(g[1]), b, fused(splat(g[0]), a, (f64x8){})));
  return (f64x8){} + product(g[0], a) + product(g[1], b) + product(g[2], c);
}

// One input channel of sixteen columns, two vectors of eight: `taps` numbers each to as many, or to points.
// columns: [taps][2].
FD_INLINE void transform_filter(const FilterTransform& g, f64x8 (*columns)[2]) {
  f64x8 kernel[9][2], half[6][3];
  __builtin_memcpy(kernel, columns, sizeof(kernel));
  for (int part = 0; part < 2; ++part) {
    for (int a = 0; a < g.size; ++a)
      for (int x = 0; x < 3; ++x)
        half[a][x] = dot(g.rows[a], kernel[x][part], kernel[3 + x][part], kernel[6 + x][part], a < FUSED_ROWS);
    for (int a = 0; a < g.size; ++a)
      for (int b = 0; b < g.size; ++b)
        columns[a * g.size + b][part] = dot(g.rows[b], half[a][0], half[a][1], half[a][2], false);
  }
}

// Columns [column, column + 16) of input channel `row`, zero behind the last column.
template <typename T>
FD_INLINE void read_filter(const PackedLayerArgs& a, int64_t row, int64_t column, f64x8 (*columns)[2]) {
  const int64_t count = a.channels_out - column < 16 ? a.channels_out - column : 16;
  const T* from = (const T*)a.weight + (column * a.channels + row) * a.taps;
  for (int64_t tap = 0; tap < a.taps; ++tap) {
    double v[16] = {};
    for (int64_t n = 0; n < count; ++n) v[n] = (double)from[n * a.channels * a.taps + tap];
    __builtin_memcpy(columns[tap], v, sizeof(v));
  }
}

FD_INLINE f32x16 narrowed(const f64x8 (&v)[2]) {
  typedef float f32x8 __attribute__((vector_size(32)));
  const f32x8 halves[2] = {__builtin_convertvector(v[0], f32x8), __builtin_convertvector(v[1], f32x8)};
  f32x16 all;
  __builtin_memcpy(&all, halves, sizeof(all));
  return all;
}

// Rows [PACKED_ROWS * block, ...) of a panel, block by block.
void run_packing(const PackedLayerArgs& args, int64_t first_unit, int64_t last_unit) {
  const int64_t panels = ceil_div(args.channels_out, PANEL), blocks = ceil_div(args.channels, PACKED_ROWS);
  const int64_t words = args.pairs ? (args.channels + 1) / 2 : args.channels;
  const bool direct = args.algorithm == PLAN_DIRECT;
  const FilterTransform& g = args.algorithm == PLAN_WINOGRAD2 ? OF_TWO : args.pairs ? OF_FOUR_PAIRS : OF_FOUR;
  const int64_t points = direct ? args.taps : g.size * g.size;
  constexpr int64_t MOST = 49;
  f64x8 columns[MOST][2];
  u32x16 lower[MOST];
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const int64_t panel = unit / blocks, first = unit % blocks * PACKED_ROWS;
    const int64_t last = first + PACKED_ROWS < args.channels ? first + PACKED_ROWS : args.channels;
    const int64_t end = args.channels_out < (panel + 1) * PANEL ? args.channels_out : (panel + 1) * PANEL;
    for (int64_t column = panel * PANEL; column < end; column += 16)
      for (int64_t row = first; row < last; ++row) {
        args.wide ? read_filter<double>(args, row, column, columns) : read_filter<float>(args, row, column, columns);
        if (!direct) transform_filter(g, columns);
        for (int64_t point = 0; point < points; ++point) {
          const int64_t matrix = direct ? panel * points + point : point * panels + panel;
          float* to = args.packed + (matrix * words + (args.pairs ? row / 2 : row)) * PANEL + column % PANEL;
          const f32x16 numbers = narrowed(columns[point]);
          if (!args.pairs) {
            store16(to, numbers);
            continue;
          }
          const u32x16 rounded = __builtin_convertvector(rounded_to_bfloat(numbers), u32x16);
          if (row % 2 == 0) lower[point] = rounded;
          if (row % 2 == 1 || row + 1 == args.channels)
            *(u32x16u*)to = row % 2 == 0 ? rounded : lower[point] | rounded << 16;
        }
      }
  }
}

}  // namespace fastdiff::FD_VARIANT
