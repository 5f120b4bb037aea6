// Rows of several tables at once, each over samples of its own.
#include "chunks.h"

#include <cstdint>
#include <cstring>

#include "row.h"
#include "row_layout.h"

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
    launch_step(args_of(c));
  }
}

}  // namespace fastdiff
