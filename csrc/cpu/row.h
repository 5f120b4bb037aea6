// A row of a coefficient table over plain addresses.
#pragma once

#include <cstdint>

#include "step.h"

namespace fastdiff {

// What a row k [ROW_WIDTH] uses must be there; `number` is for the message. Of float and double.
template <typename A> void check_row(const A* k, int64_t number, bool has_output, bool has_base, int64_t depth);

// Executes the rows that `args` names.
void launch_step(const StepArgs& args);

// One row that draws no noise, over float32 tensors that are all dense and of one layout; nullptr where absent.
struct DenseStep {
  float *x, *model_output, *out, *pred_out, *base;  // [numel] each
  float* history;                                   // [history_depth, numel]
  int history_depth;
  int64_t numel;
  const float* rows;  // [R, ROW_WIDTH]
  int64_t row;
};
void step_dense(const DenseStep& call);

}  // namespace fastdiff
