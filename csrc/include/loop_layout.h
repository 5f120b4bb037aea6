// What the sampling loop on a GPU shares with Python, in this order; fastdiff/engine/cuda/library.py repeats it, and a
// test compares them.
#pragma once

#include <cstdint>

namespace fastdiff {

// Raised with each change of this file, so that a library of another day is refused.
constexpr int64_t LOOP_LAYOUT = 1;

// The control block: int64 words in device memory, which kernels read by pointer, so that nothing in them is part of a
// captured graph. A kernel that meets a value that is not finite writes the row it reads into LOOP_NONFINITE.
enum LoopControl : int { LOOP_ROW, LOOP_END, LOOP_NUM_ROWS, LOOP_SEED, LOOP_NONFINITE };
constexpr int64_t LOOP_CONTROL_WIDTH = 16;

// Host memory that the GPU sees as well. The first words are the GPU's to write, the others, a cache line further, the
// host's.
enum LoopShared : int {
  LOOP_DONE,           // the row after the one finished last
  LOOP_BAD_ROW,        // the row that met a value that is not finite, or -1
  LOOP_WORD_STOP = 8,  // not 0: stop before the next row
  LOOP_WORD_FIRST,     // of a launch: its first row, the row behind its last, and what the control block is given
  LOOP_WORD_LAST,
  LOOP_WORD_NUM_ROWS,
  LOOP_WORD_SEED,
};
constexpr int64_t LOOP_SHARED_WIDTH = 16;

enum LoopMode : int64_t { LOOP_WHILE, LOOP_REPLAY, LOOP_UNROLLED, LOOP_MODES };

// What a loop is built from; addresses and handles as numbers, 0 for none.
struct LoopOptions {
  int64_t mode;
  int64_t device;
  int64_t stream;       // where the graph is uploaded
  int64_t control;      // int64 [LOOP_CONTROL_WIDTH] on the device
  int64_t rows;         // float32 [rows, ROW_WIDTH] on the device
  int64_t network;      // captured graph: the evaluation of the network; or none, where `step` has it
  int64_t step;         // captured graph: the rest of a row
  int64_t every_row;    // not 0: the network runs at each row, whatever the table says
  int64_t first, last;  // unrolled: the rows, last excluded
  int64_t evaluates;    // unrolled: uint8 [last - first] on the host, whether each row runs the network
};
constexpr int64_t LOOP_OPTIONS = sizeof(LoopOptions) / sizeof(int64_t);

// What the functions of csrc/cuda/loop.h return: 0, a cudaError_t, or one of these.
enum LoopFailure : int64_t { LOOP_REFUSED = -1, LOOP_UNSUPPORTED = -2, LOOP_MISUSED = -3, LOOP_BROKEN = -4 };

}  // namespace fastdiff
