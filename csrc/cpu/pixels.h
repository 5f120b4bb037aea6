// What a network's training does to images beside its layers. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

namespace fastdiff {

// Images are [B, H, W, C]. y = f(x) + added + bias, where f is
// SILU: x sigmoid(x); SILU_GRAD: its slope at x, times x2; ADD: x + x2;
// POOL: the sum of 2x2 pixels times the factor; REPEAT: each pixel twice in both directions, times the factor;
// UNFOLD: the 3x3 pixels under a kernel, [9, C], from pixel y * stride - pad on; FOLD: its adjoint.
enum PixelOp : int {
  PIXELS_SILU,
  PIXELS_SILU_GRAD,
  PIXELS_ADD,
  PIXELS_POOL,
  PIXELS_REPEAT,
  PIXELS_UNFOLD,
  PIXELS_FOLD
};
struct PixelArgs {
  PixelOp op;
  const float *x, *x2 = nullptr;
  const float* added = nullptr;  // as y, or nullptr
  const float* bias = nullptr;   // [C] of a fold, or nullptr
  float* y;
  int64_t height_in, width_in, height, width;  // of x, and of y
  int64_t channels;                            // of the image; an unfolded one has nine times as many
  int64_t stride = 1, pad = 0;
  bool turned = false;  // columns are [C, 9], the last pixel first
  float factor = 1.0f;
};

}  // namespace fastdiff
