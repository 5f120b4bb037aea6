// What group norm with its SiLU is given, forward and backward. Plain data, as in elementwise.h.
#pragma once

#include <cstdint>

#include "elementwise.h"

namespace fastdiff {

// h = (x, x2) + added + residual, of [B, pixels, C]. With a residual h is also written, to `total`.
struct NormArgs {
  int64_t batch, pixels, channels, channels1;  // channels1: those of x; the others are x2's
  int64_t groups;
  int64_t block;  // channels of a unit: whole groups
  double eps;
  bool act;
  Matrix x, x2, residual, total;
  const float* added;    // [B, C] or [C]: see added_stride; nullptr: nothing
  int64_t added_stride;  // C or 0
  const float *weight, *bias;   // [C]
  const float *scale, *shift;   // [B, C] or nullptr
  Matrix y;
  float *mean, *rstd;           // [B, groups]
};

struct NormGradArgs {
  NormArgs forward;             // y is not used; with a residual x is the written sum
  Matrix dy, dtotal, dx, dx2;
  float *du_sum, *du_xhat_sum;  // [B, C]: sums over the pixels of du and du * xhat
  float* dh_sum;                // [B, C], or nullptr
};

static inline int64_t norm_units(const NormArgs& a) { return a.batch * ((a.channels + a.block - 1) / a.block); }
static inline int64_t norm_width(const NormArgs& a) { return (a.block + 15) / 16 * 16; }
// Pixels at a time, so that their channels stay in the first-level cache.
static inline int64_t norm_chunk(const NormArgs& a) {
  const int64_t pixels = 4096 / norm_width(a);
  return pixels < 1 ? 1 : pixels;
}
static inline int64_t norm_scratch(const NormArgs& a) { return (2 * norm_chunk(a) + 8) * norm_width(a); }

struct NormKernels {
  const char* name;
  void (*forward)(const NormArgs&, int64_t unit, float* scratch);
  void (*backward)(const NormGradArgs&, int64_t unit, float* scratch);
};

extern const NormKernels norm_generic, norm_avx2, norm_avx512;

}  // namespace fastdiff
