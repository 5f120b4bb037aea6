// What an instruction of the plan is given, and how it is cut into units of work. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "plan_layout.h"
#include "rounding.h"

namespace fastdiff {

// One instruction, for a batch.
struct Work {
  Instruction i;
  int64_t batch;
  float* arena;          // what the instruction's places count from
  const float* weights;  // likewise
  const float* times;    // [1 or B, times_stride]: what the blocks need of the time
  int64_t times_stride;  // 0: one vector for all samples
  float* shared;         // [shared_scratch(...)], of all threads
  int64_t phase;         // units of one need all of the phase before
};

// Panels of so many columns.
static inline int64_t panels_of(int64_t channels) { return ceil_div(channels, PANEL); }

// Words of a row of numbers that are multiplied: floats, or pairs of bfloat16.
static inline int64_t words_of(const Instruction& i, int64_t count) { return i.pairs ? (count + 1) / 2 : count; }

// Winograd: tiles of `size` x `size` results, from (size + 2)^2 pixels.
struct Tiles {
  int64_t size, points, per_row, rows, total;  // rows: rows of tiles in the whole batch
  int64_t blocks, block_rows;                  // units, as even as can be, and the most rows of tiles of one
  bool phased;                                 // too few tiles to give each thread its own
};
Tiles tiles_of(const Instruction& i, int64_t batch, int64_t threads);
// Floats from one point's matrix of transformed tiles to the next. A cache line more than it holds: the transforms
// touch the same place in all of them, which otherwise would compete for one set of the first-level cache.
static inline int64_t point_stride(int64_t tiles, int64_t columns) { return tiles * columns + 16; }

// The largest kernel of a direct convolution is 7 x 7.
constexpr int64_t MOST_KERNEL = 7, MOST_TAPS = MOST_KERNEL * MOST_KERNEL;

// A convolution to so few channels that a vector of outputs would be mostly empty: vectors run along the inputs.
constexpr int64_t FEW_OUTPUTS = 4;
static inline bool by_dots(const Instruction& i) {
  return !i.pairs && i.kernel == 3 && i.channels_out <= FEW_OUTPUTS && (i.channels + i.channels2) % 16 == 0;
}

// Input of a direct convolution: padded and whole, or, where the kernel is one pixel, block by block; in words.
struct Padded {
  int64_t height, width;
  bool copied;  // else the source itself is read
  bool pointwise;
  int64_t block;  // pixels of a unit
};
Padded padded_of(const Instruction& i);
// Units that the panels of a block of pixels are shared out to.
int64_t panel_groups(const Instruction& i, const Padded& padded, int64_t batch, int64_t threads);

// Attention: rows of queries of a unit.
constexpr int64_t QUERY_BLOCK = 24;
// q, k and v are packed, or q and v with keys of the second source. Channels of each, and where v begins.
static inline int64_t attention_width(const Instruction& i) { return i.source2 < 0 ? i.channels / 3 : i.channels2; }
static inline int64_t attention_values(const Instruction& i) { return (i.source2 < 0 ? 2 : 1) * attention_width(i); }
// Floats of w.shared that a head of a sample has: its keys, and in pairs its values as well.
static inline int64_t attention_shared(const Instruction& i) {
  const int64_t keys = i.height * i.width, d = attention_width(i) / i.heads;
  return panels_of(keys) * PANEL * words_of(i, d) + (i.pairs ? words_of(i, keys) * d : 0);
}

// Attention with a memory: pixels of a unit of the linear one; keys of a head, and floats that are kept of them.
constexpr int64_t LINEAR_BLOCK = 48;
static inline int64_t attention_keys_of(const Instruction& i) { return i.memory + i.height * i.width; }
static inline int64_t memory_head(const Instruction& i) {
  return (panels_of(attention_keys_of(i)) * PANEL + attention_keys_of(i)) * (attention_width(i) / i.heads);
}

int64_t num_phases(const Instruction& i, int64_t batch, int64_t threads);
int64_t num_units(const Instruction& i, int64_t batch, int64_t threads, int64_t phase);
// Floats of scratch: of the instruction, and of each thread.
int64_t shared_scratch(const Instruction& i, int64_t batch, int64_t threads);
int64_t thread_scratch(const Instruction& i, int64_t batch, int64_t threads);

}  // namespace fastdiff
