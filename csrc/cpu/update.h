// What a training's update is given: AdamW's step with the average of the weights, and the norms of gradients. Plain
// data, as in kernels.h.
#pragma once

#include <cstdint>

namespace fastdiff {

// Some numbers of one tensor.
struct UpdatePiece {
  float *parameter, *exp_avg, *exp_avg_sq, *average;  // average: or nullptr
  const float* gradient;
  int64_t count;
};
constexpr int64_t UPDATE_PIECE = 4096;

// With g = scale * gradient:
//   exp_avg += share (g - exp_avg),  exp_avg_sq = beta2 exp_avg_sq + share2 g g
//   parameter = kept parameter - step_size exp_avg / (sqrt(exp_avg_sq) * per_root + eps)
//   average += average_share (parameter - average), from the end that is nearer
struct UpdateArgs {
  const UpdatePiece* pieces;
  float scale, kept, share, beta2, share2, per_root, eps, step_size, average_share;
};

// The sum of the squares of each piece's gradient, in float64.
struct SquaresArgs {
  const UpdatePiece* pieces;
  double* sums;  // [pieces]
};

}  // namespace fastdiff
