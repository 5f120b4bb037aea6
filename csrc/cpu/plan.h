// Plans over plain addresses: one evaluation of a network, or that and a row of a coefficient table, again and again.
// All memory is the caller's. What does not fit throws std::runtime_error before anything is written. Launchers only.
#pragma once

#include <cstdint>

#include "plan_layout.h"

namespace fastdiff {

struct Code {
  const Instruction* instructions;
  int64_t length;
};

// Floats of scratch: what is shared, and what each of the threads has for itself; of all threads, or of the lanes, with
// one thread each.
struct Scratch {
  int64_t shared, per_thread, threads, sets;
  int64_t set() const { return shared + threads * per_thread; }
  int64_t total() const;
};

// Checks the numbers of each instruction first. part, lanes: of Program.
Scratch scratch_of(const Code& code, int64_t batch, int64_t part, int64_t lanes, int64_t threads);

// Floats that lie together.
struct Floats {
  float* data;
  int64_t count;
};
struct ConstFloats {
  const float* data;
  int64_t count;
};

// A plan with its memory. Either all threads share every instruction for the whole batch, or (`lanes` > 0) each lane
// takes parts of the batch through the whole plan by itself.
struct Program {
  const Instruction* instructions;
  int64_t length, batch, threads;
  int64_t part, lanes;
  const float* weights;
  float *arena, *shared, *scratch;
  int64_t per_thread;
  int64_t arena_stride, scratch_stride;  // from a lane to the next
};

// Checks every place that the instructions name. The arena is for max(1, lanes); `times_width`: of a time's vector.
Program program_of(const Code& code, ConstFloats weights, Floats arena, Floats scratch, int64_t batch, int64_t part,
                   int64_t lanes, int64_t threads, int64_t times_width);

// Where a plan reads its input and leaves its output: places in the arena, and numbers of a sample.
struct Ends {
  int64_t input, size_in, output, size_out;
};

// Checks what `program_of` checks, and the ends, for parts of so many samples in an arena of one lane.
void check_plan(const Code& code, int64_t part, int64_t arena, int64_t weights, int64_t times_width, const Ends& ends);
void check_ends(const Program& p, const Ends& ends);

// The program on x * scale. x: [batch, size_in]; times: [1 or batch, times_stride], 0 for one vector; out: [batch,
// size_out].
void evaluate(const Program& p, const Ends& ends, const float* x, float scale, const float* times, int64_t times_stride,
              float* out);

// Rows of a table on a batch of images [batch, pixels, channels]; nullptr for what is absent.
struct Rows {
  float *x, *model_output, *base, *pred_out;  // [batch, pixels, channels], model_output of channels_out
  float* history;                             // [history_depth, ...], history_stride from slot to slot
  int64_t history_depth, history_stride;
  int64_t pixels, channels, channels_out;
  bool learned_variance;   // the second half of the output
  const float* table;      // [R, ROW_WIDTH]
  const int64_t* numbers;  // [R], their own
  int64_t first, last;     // rows to execute
  const float* times;      // of the row `first_time` and those that follow, times_row each
  int64_t first_time, times_row, times_stride;
  const int64_t* sample_ids;  // [batch]
  uint64_t seed;
};
void run_rows(const Program& p, const Ends& ends, const Rows& rows);

}  // namespace fastdiff
