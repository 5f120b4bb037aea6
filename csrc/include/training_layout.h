// An instruction of a network's training as it lies in memory: int64 numbers, in this order.
// fastdiff/nets/training_plan.py repeats it, and a test compares them.
#pragma once

#include <cstdint>

namespace fastdiff {

enum TrainOp : int64_t {
  TRAIN_CONV,
  TRAIN_CONV_GRAD,
  TRAIN_LINEAR,
  TRAIN_LINEAR_GRAD,
  TRAIN_SUMS,
  TRAIN_NORM,
  TRAIN_NORM_GRAD,
  TRAIN_SCALE_GRAD,
  TRAIN_DROPOUT,
  TRAIN_ATTENTION,
  TRAIN_ATTENTION_GRAD,
  TRAIN_SILU,
  TRAIN_SILU_GRAD,
  TRAIN_ADD,
  TRAIN_POOL,
  TRAIN_REPEAT,
  TRAIN_UNFOLD,
  TRAIN_FOLD,
  TRAIN_OPS
};

// Places are counted in floats of one sample from the start of the arena, and -1 is none: what begins at place p of a
// batch of B begins at float p B, and its samples follow each other. Images are [H, W, C]. Parameters have numbers.
struct TrainInstruction {
  int64_t op;
  int64_t x, channels;    // what is read, of a gradient what the layer has read
  int64_t x2, channels2;  // channels that follow those of x, or a second image; or -1, 0
  int64_t height, width;  // of x
  int64_t dy;             // the gradient that is read
  int64_t added;          // added to what is written, or -1; of a norm's gradient of all channels, (x, x2)
  int64_t more;           // of a norm's gradient: added last, of x's channels
  int64_t y, y2;          // what is written; y2: the gradient of x2
  int64_t height_out, width_out, channels_out;  // of y
  int64_t stride, pad;                          // of a kernel of 3x3 pixels; pad: rows above and columns to the left
  int64_t weight, bias;                         // parameters, or -1
  int64_t transposed;   // the layer's adjoint; unfold and fold: columns are (channel, pixel turned by half a turn)
  int64_t act;          // SiLU behind the norm
  int64_t time, scale;  // of a norm: [C] to add to x; scale and shift, [2, C]
  int64_t stats;        // of a norm: mean and rstd, [groups] each, batch by batch
  int64_t sums, products, total;  // of its gradient: those of du, of du * xhat and of dh, [C] each
  int64_t groups, heads, heads_first;
  int64_t layer;      // of a dropout: which seed
  int64_t last_kept;  // of a dropout
  int64_t number;     // bits of a float64: epsilon, or a factor
};

constexpr int64_t TRAIN_WIDTH = sizeof(TrainInstruction) / sizeof(int64_t);

}  // namespace fastdiff
