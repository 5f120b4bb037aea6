// Rows of several tables at once, each over samples of its own.
#include "chunks.h"

#include <cstdint>
#include <cstring>

#include "matrix.h"
#include "noise_layout.h"
#include "row.h"
#include "row_layout.h"
#include "step.h"
#include "tiling.h"

namespace fastdiff {

void chunk_inputs(const Chunk* chunks, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Chunk& c = chunks[i];
    const int64_t numel = c.samples * c.pixels * c.channels;
    const float scale = c.rows[ROW_WIDTH * c.row + ROW_CI];
    for (int64_t j = 0; j < numel; ++j) c.input[j] = scale * c.x[j];
    for (int64_t copy = 1; copy < c.copies; ++copy)
      std::memcpy(c.input + copy * numel, c.input, static_cast<size_t>(numel) * sizeof(float));
  }
}

void chunk_steps(const Chunk* chunks, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Chunk& c = chunks[i];
    check_row(c.rows + ROW_WIDTH * c.row, c.row, c.model_output != nullptr, c.base != nullptr, c.history_depth);
  }
  for (int64_t i = 0; i < count; ++i) {
    const Chunk& c = chunks[i];
    // One that fits both layouts is contiguous.
    const bool channels_last = c.channels != 1 || c.channels_out != 1;
    const auto matrix = [&](float* data, int64_t channels, int64_t first_channel) {
      if (data == nullptr) return Matrix{};
      return Matrix{data + first_channel, Dtype::F32, c.pixels * channels, channels_last ? channels : 0};
    };
    StepArgs args;
    args.shape = channels_last ? Shape{c.samples, c.pixels, c.channels, true}
                               : Shape{c.samples, 1, c.pixels * c.channels, false};
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
    launch_step(args);
  }
}

}  // namespace fastdiff
