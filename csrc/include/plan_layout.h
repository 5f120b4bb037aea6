// An instruction of a plan as it lies in memory: int64 numbers, in this order. fastdiff/engine/pack.py repeats it, and
// a test compares them.
#pragma once

#include <cstdint>

namespace fastdiff {

enum PlanOp : int64_t {
  PLAN_STATS,
  PLAN_NORM,
  PLAN_CONV,
  PLAN_ATTENTION,
  PLAN_POOL,
  PLAN_REPEAT,
  PLAN_PIXEL_NORM,
  PLAN_MEMORY_ATTENTION,
  PLAN_LINEAR_ATTENTION,
  PLAN_OPS
};
// What a PLAN_PIXEL_NORM divides a pixel by: its length; the deviation of its channels, whose mean is taken off; or
// nothing, where the factors and offsets of a group norm are given.
enum PixelNorm : int64_t { PIXEL_NORM_LENGTH, PIXEL_NORM_LAYER, PIXEL_NORM_FACTORS, PIXEL_NORMS };
enum PlanAlgorithm : int64_t { PLAN_DIRECT, PLAN_WINOGRAD4, PLAN_WINOGRAD2, PLAN_ALGORITHMS };

// Places are counted in floats from the start of the arena or of the weights; -1 is none. A place in the arena is that
// of sample 0; the samples follow each other. Images are [H, W, C].
struct Instruction {
  int64_t op;
  int64_t algorithm;
  int64_t kernel, stride, pad;  // pad: rows above and columns to the left; kernel of a pool or repeat: 4 for a filter
  int64_t upsample, act;        // read each pixel twice in both directions; apply SiLU behind the norm
  int64_t source, channels;     // what is read, and how many channels of it
  int64_t source2, channels2;   // the same of a second source, whose channels follow; or -1, 0
  int64_t height_in, width_in;  // of the sources
  int64_t height, width, channels_out;
  int64_t target;
  int64_t residual;         // added to the result, of its shape
  int64_t norm;             // [2, C]: factor and offset of each channel
  int64_t weight, bias;     // norm: [C] each; attention with a memory: [2, heads, memory, d]
  int64_t time;             // place in the time's vector: [C] to add, or of a norm the scale [C] and shift [C]
  int64_t groups, epsilon;  // epsilon: place of a number among the weights; groups of an attention with a memory:
                            // numbers of a head that are no padding
  int64_t heads;
  int64_t stats, stats2;  // [2, C]: mean and sum of squares about it, of each source
  int64_t pairs;          // products are those of bfloat16 numbers, two of which are a word where a float would be
  int64_t memory;         // learned keys and values of an attention, in front of those of the pixels; of a norm 1 where
                          // two numbers behind epsilon say what the sources are to be multiplied by; of a pixel norm
                          // which
};

constexpr int64_t PLAN_WIDTH = sizeof(Instruction) / sizeof(int64_t);
// Columns of packed weights come in panels of this many.
constexpr int64_t PANEL = 64;

}  // namespace fastdiff
