// Rows of several tables at once, each over samples of its own: what a server executes around an evaluation.
#pragma once

#include <cstdint>

#include "step.h"

namespace fastdiff {

// Samples that are at one row of one table. 64-bit numbers throughout, filled in by Python (fastdiff/serving/rows.py,
// which has the fields in this order); float32, each sample in channels_last; nullptr where absent.
struct Chunk {
  float* x;             // [samples, pixels, channels], updated in place
  float* model_output;  // [samples, pixels, channels_out]
  float* base;          // as x
  float* history;       // [history_depth, samples, pixels, channels], slots history_stride apart
  float* pred_out;      // as x
  float* input;         // [copies, samples, pixels, channels], where the network finds them
  const float* rows;    // [R, ROW_WIDTH]
  const int64_t* sample_ids;
  int64_t history_depth, history_stride;
  int64_t row;
  int64_t samples, pixels, channels, channels_out;
  int64_t copies;
  int64_t learned_variance;
  uint64_t seed;
};

// What a row's kernel is given of a chunk, which must outlive it.
StepArgs args_of(const Chunk& chunk);

// Writes what the network is given for each chunk's row: ci x.
void chunk_inputs(const Chunk* chunks, int64_t count);

// Executes each chunk's row, which evaluates the network.
void chunk_steps(const Chunk* chunks, int64_t count);

}  // namespace fastdiff
