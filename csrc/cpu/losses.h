// What the losses and their gradient are given. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace fastdiff {

// Losses of each sample, and the gradient of the network's output. Samples are dense and alike; a unit is `tile`
// elements of one of them, all halves and images counted alike.
struct LossArgs {
  Matrix output, target, x0, x_t;  // target.data == nullptr: no squared error; x0.data == nullptr: no bound
  Matrix gradient;                 // data == nullptr: the sums are wanted
  int64_t per_sample, tile;
  bool learned;      // the output has a second half, which says the variance
  int64_t channels;  // of a half where both alternate pixel by pixel (channels_last), tile a multiple of it; else 0
  bool discrete, detach_mean;
  double clip, levels;                // clip 0: none
  const int64_t* t;                   // [B]
  const void* table;                  // [T, 6], float, or double when output is
  const void *grad_mse, *grad_bound;  // [B], the same; nullptr: none
  double* sums;                       // [units, 3]: squares, nats, squared error of the predicted x_0
};

}  // namespace fastdiff
