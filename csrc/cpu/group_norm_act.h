// What group norm with its SiLU is given, forward and backward. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "matrix.h"
#include "rounding.h"

namespace fastdiff {

// h = (x, x2) + added_bias + added_time + residual. With a residual h is also written, to `total`.
// Images are dense [B, pixels, C], or [B, C, pixels] where `planar`; rows of a Matrix follow memory.
struct NormArgs {
  int64_t batch, pixels, channels, channels1;  // channels1: those of x; the others are x2's
  int64_t groups;
  int64_t block;  // channels of a unit: whole groups
  bool planar;
  double eps;
  bool act;
  Matrix x, x2, residual, total;
  const float *added_bias, *added_time;  // [C] and [B, C], or nullptr
  const float *weight, *bias;            // [C]
  const float *scale, *shift;            // [B, C] or nullptr, the samples scale_stride apart
  int64_t scale_stride;
  Matrix y;
  float *mean, *rstd;  // [B, groups]
};

struct NormGradArgs {
  NormArgs forward;  // y is not used; with a residual x is the written sum
  Matrix dy, dtotal, dx, dx2;
  Matrix dmore;                 // without x2: added to dx last
  float *du_sum, *du_xhat_sum;  // [B, C]: sums over the pixels of du and du * xhat
  float* dh_sum;                // [B, C], or nullptr
};

// Values at a time, so that they stay in the first-level cache: pixels of all channels, or a piece of one channel.
constexpr int64_t NORM_TILE = 4096;
// Channels of a unit: whole groups, and whole cache lines, or enough values, where groups are small.
static inline int64_t norm_block(const NormArgs& a) {
  const int64_t size = a.channels / a.groups, enough = a.planar ? ceil_div(NORM_TILE, a.pixels) : 64;
  return size * (size >= enough ? 1 : enough / size);
}
static inline int64_t norm_units(const NormArgs& a) { return a.batch * ceil_div(a.channels, a.block); }
static inline int64_t norm_width(const NormArgs& a) { return round_up(a.block, 16); }
static inline int64_t norm_tile(const NormArgs& a) {
  return !a.planar && norm_width(a) > NORM_TILE ? norm_width(a) : NORM_TILE;
}
constexpr int64_t NORM_TILES = 4, NORM_VECTORS = 9;
static inline int64_t norm_scratch(const NormArgs& a) {
  return NORM_TILES * norm_tile(a) + NORM_VECTORS * norm_width(a);
}

}  // namespace fastdiff
