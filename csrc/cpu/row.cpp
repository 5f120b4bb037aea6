// A row of a coefficient table over plain addresses.
#include "row.h"

#include <cstdint>

#include "chunks.h"
#include "failure.h"
#include "kernels.h"
#include "matrix.h"
#include "noise_layout.h"
#include "row_layout.h"
#include "step.h"
#include "threads.h"
#include "tiling.h"

namespace fastdiff {

template <typename A>
void check_row(const A* k, int64_t number, bool has_output, bool has_base, int64_t depth) {
  const bool saves = k[ROW_SAVE_BASE] != A(0), pushes = k[ROW_PUSH] != A(0);
  const auto reads = [&](int coefficient, int saved) { return k[coefficient] != A(0) || (saves && k[saved] != A(0)); };
  FD_CHECK(has_output || k[ROW_EVALUATE] == A(0) || (k[ROW_PM] == A(0) && !reads(ROW_CM, ROW_BM)), "row ", number,
           " reads the model's output, and none was given");
  FD_CHECK(has_base || !(saves || reads(ROW_CB, ROW_BB)), "row ", number,
           " uses the saved state, and no base was given: give all rows the same one");
  int64_t needed = pushes ? 1 : 0;
  for (int age = 1; age <= 3; ++age)
    if (reads(ROW_C1 + age - 1, ROW_B1 + age - 1)) needed = age;
  // A row that was made by hand may not say how many slots there are.
  const double told = needed > 0 ? static_cast<double>(k[ROW_DEPTH]) : 0;
  FD_CHECK(needed <= depth && (told == 0 || told == static_cast<double>(depth)), "row ", number, " uses a history of ",
           told == 0 ? static_cast<double>(needed) : told, " slots, got ", depth,
           ": make it with new_history, and give all rows the same one");
  FD_CHECK(depth == 0 || (k[ROW_SLOT] >= A(0) && k[ROW_SLOT] < static_cast<A>(depth)), "row ", number, " uses slot ",
           static_cast<double>(k[ROW_SLOT]), " of a history of ", depth, " slots");
}

template void check_row(const float*, int64_t, bool, bool, int64_t);
template void check_row(const double*, int64_t, bool, bool, int64_t);

void launch_step(const StepArgs& args) {
  const Kernels& variant = kernels();
  parallel_for(0, num_units(args.shape), GRAIN, [&](int64_t first, int64_t last) { variant.step(args, first, last); });
}

void step_dense(const DenseStep& call) {
  FD_CHECK(call.rows[ROW_WIDTH * call.row + ROW_S] == 0, "a row that draws noise is not for step_dense");
  int64_t one_row = call.row;
  StepArgs args;
  args.shape = {1, 1, call.numel, false};
  const auto place = [&](void* data) { return Matrix{data, Dtype::F32, call.numel, 0}; };
  args.x = place(call.x);
  args.out = place(call.out);
  args.model_output = place(call.model_output);
  args.base = place(call.base);
  args.pred_out = place(call.pred_out);
  args.history_depth = call.history == nullptr ? 0 : call.history_depth;
  for (int i = 0; i < args.history_depth; ++i) args.history[i] = place(call.history + i * call.numel);
  args.noise = {};
  args.row = &one_row;
  args.row_stride = 0;
  args.rows = call.rows;
  launch_step(args);
}

StepArgs args_of(const Chunk& c) {
  // One that fits both layouts is contiguous.
  const bool channels_last = c.channels != 1 || c.channels_out != 1;
  const auto matrix = [&](float* data, int64_t channels, int64_t first_channel) {
    if (data == nullptr) return Matrix{};
    return Matrix{data + first_channel, Dtype::F32, c.pixels * channels, channels_last ? channels : 0};
  };
  StepArgs args;
  args.shape =
      channels_last ? Shape{c.samples, c.pixels, c.channels, true} : Shape{c.samples, 1, c.pixels * c.channels, false};
  args.x = args.out = matrix(c.x, c.channels, 0);
  args.model_output = matrix(c.model_output, c.channels_out, 0);
  if (c.learned_variance != 0) args.variance_output = matrix(c.model_output, c.channels_out, c.channels);
  args.base = matrix(c.base, c.channels, 0);
  args.pred_out = matrix(c.pred_out, c.channels, 0);
  args.history_depth = static_cast<int>(c.history_depth);
  for (int slot = 0; slot < args.history_depth; ++slot)
    args.history[slot] = matrix(c.history + slot * c.history_stride, c.channels, 0);
  args.noise = {{}, c.seed, STREAM_SAMPLING, c.sample_ids, &c.row, 0};
  args.row = &c.row;
  args.row_stride = 0;
  args.rows = c.rows;
  return args;
}

}  // namespace fastdiff
