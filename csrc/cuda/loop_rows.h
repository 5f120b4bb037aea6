// What the loop does between rows, written once for the GPU and for a host that stands in for one.
#pragma once

#include <cstdint>

#include "loop_layout.h"
#include "row_layout.h"

#ifdef __CUDACC__
#define FD_EVERYWHERE __host__ __device__
#else
#define FD_EVERYWHERE
#endif

namespace fastdiff {

struct LoopMemory {
  int64_t* control;          // [LOOP_CONTROL_WIDTH]
  volatile int64_t* shared;  // [LOOP_SHARED_WIDTH]; the other side writes while a kernel runs
  const float* rows;         // [rows, ROW_WIDTH]
};

// A launch begins: takes over what was asked for. Whether there is a row to run.
FD_EVERYWHERE inline bool begin_rows(const LoopMemory& memory) {
  const int64_t first = memory.shared[LOOP_WORD_FIRST], last = memory.shared[LOOP_WORD_LAST];
  memory.control[LOOP_ROW] = first;
  memory.control[LOOP_END] = last;
  memory.control[LOOP_NUM_ROWS] = memory.shared[LOOP_WORD_NUM_ROWS];
  memory.control[LOOP_SEED] = memory.shared[LOOP_WORD_SEED];
  memory.control[LOOP_NONFINITE] = -1;
  return first < last && memory.shared[LOOP_WORD_STOP] == 0;
}

// Whether the row evaluates the network.
FD_EVERYWHERE inline bool row_evaluates(const LoopMemory& memory) {
  const int64_t row = memory.control[LOOP_ROW];
  return 0 <= row && row < memory.control[LOOP_NUM_ROWS] && memory.rows[row * ROW_WIDTH + ROW_EVALUATE] != 0.0f;
}

// A row is done: goes on to the next and tells the host. Whether the next is to be run.
FD_EVERYWHERE inline bool advance_row(const LoopMemory& memory) {
  const int64_t row = memory.control[LOOP_ROW] + 1, bad_row = memory.control[LOOP_NONFINITE];
  memory.control[LOOP_ROW] = row;
  if (bad_row >= 0) memory.shared[LOOP_BAD_ROW] = bad_row;
  memory.shared[LOOP_DONE] = row;
  return row < memory.control[LOOP_END] && bad_row < 0 && memory.shared[LOOP_WORD_STOP] == 0;
}

}  // namespace fastdiff
