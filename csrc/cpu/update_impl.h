// AdamW's step with the average of the weights, and sums of squares, piece by piece.
#pragma once

#include <cstdint>

#include "philox_impl.h"
#include "update.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// from + weight (to - from), counted from the end that is nearer, so that it is an end's own value at 0 and 1.
FD_INLINE f32x16 lerp(f32x16 from, f32x16 to, float weight) {
  return weight < 0.5f ? from + weight * (to - from) : to - (to - from) * (1.0f - weight);
}

// Numbers [k, k + 16) of a piece; where they are not WHOLE, `left` of them.
template <bool WHOLE>
FD_INLINE void update_vector(const UpdateArgs& a, const UpdatePiece& piece, int64_t k, int64_t left) {
  const auto load = [&](const float* from)
                        __attribute__((always_inline)) { return WHOLE ? load16(from + k) : load_some(from + k, left); };
  const auto store = [&](float* to, f32x16 v)
                         __attribute__((always_inline)) { WHOLE ? store16(to + k, v) : store_some(to + k, v, left); };
  const f32x16 g = load(piece.gradient) * a.scale;
  const f32x16 mean = lerp(load(piece.exp_avg), g, a.share);
  const f32x16 square = load(piece.exp_avg_sq) * a.beta2 + a.share2 * g * g;
  const f32x16 parameter = load(piece.parameter) * a.kept - a.step_size * mean / (sqrt_v(square) * a.per_root + a.eps);
  store(piece.exp_avg, mean);
  store(piece.exp_avg_sq, square);
  store(piece.parameter, parameter);
  if (piece.average != nullptr) store(piece.average, lerp(load(piece.average), parameter, a.average_share));
}

void run_update(const UpdateArgs& a, int64_t first_piece, int64_t last_piece) {
  for (int64_t n = first_piece; n < last_piece; ++n) {
    const UpdatePiece& piece = a.pieces[n];
    int64_t k = 0;
    for (; k + 16 <= piece.count; k += 16) update_vector<true>(a, piece, k, 16);
    if (k < piece.count) update_vector<false>(a, piece, k, piece.count - k);
  }
}

void run_squares(const SquaresArgs& a, int64_t first_piece, int64_t last_piece) {
  typedef float f32x8u __attribute__((vector_size(32), aligned(4)));
  for (int64_t n = first_piece; n < last_piece; ++n) {
    const UpdatePiece& piece = a.pieces[n];
    f64x8 sums[4] = {};
    int64_t k = 0;
    for (; k + 32 <= piece.count; k += 32)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const f64x8 v = __builtin_convertvector(*(const f32x8u*)(piece.gradient + k + 8 * u), f64x8);
        sums[u] += v * v;
      }
    double total = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; k < piece.count; ++k) total += (double)piece.gradient[k] * (double)piece.gradient[k];
    a.sums[n] = total;
  }
}

}  // namespace fastdiff::FD_VARIANT
