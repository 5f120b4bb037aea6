// An exported model as it lies in a file; docs/standalone.md tells it in words. fastdiff/engine/export.py writes it,
// and a test compares the two.
#pragma once

#include <cstdint>

namespace fastdiff {

// Raised with each change of this file, of plan_layout.h or row_layout.h, or of how weights are packed.
constexpr uint32_t FILE_VERSION = 2;
constexpr char FILE_MAGIC[] = "fastdiff";
// Reads as another number where the machine's word order is another.
constexpr uint32_t FILE_WORD_ORDER = 0x01020304;
// Of sections, in bytes.
constexpr uint64_t FILE_ALIGNMENT = 64;

struct FileHeader {
  char magic[8];
  uint32_t word_order, version;
  uint64_t size;          // of the whole file
  uint32_t num_sections;  // which follow the header
  uint32_t crc;           // CRC-32 of the header, with 0 here, and of the sections' entries
  uint8_t unused[32];
};

// The kinds of sections. Each stands once in a file, in this order; only the labels may be absent.
enum FileKind : uint32_t {
  FILE_NUMBERS = 1,   // FileNumbers
  FILE_TEXT,          // UTF-8, for people
  FILE_TABLE,         // float32 [rows, ROW_WIDTH]
  FILE_CODE,          // Instruction [N], for one sample
  FILE_TIME_CODE,     // Instruction [N]: from an embedded time [embedding] to the network's vector [time_width]
  FILE_EMBEDDED,      // float32 [rows, embedding]: the embedded time of each row
  FILE_LABELS,        // float32 [classes, embedding], added to it
  FILE_TIME_WEIGHTS,  // float32 [N], packed, with 16 numbers behind the last that is used
  FILE_WEIGHTS,       // likewise
  FILE_KINDS,
};

struct FileSection {
  uint32_t kind, crc;     // CRC-32 of the section
  uint64_t offset, size;  // bytes
  uint8_t unused[8];
};

// Places and lengths of arenas are counted in floats, for one sample.
struct FileNumbers {
  int64_t plan_width, row_width, panel;  // what the other layouts were
  int64_t channels, height, width;       // of an image
  int64_t channels_out;                  // of the network's output
  int64_t rows, embedding, time_width;
  int64_t classes, classes_in_turn;  // 0 without labels; those that samples take in turn where none is asked for
  int64_t learned_variance, history_depth, uses_base;
  int64_t input, output, arena;
  int64_t time_input, time_output, time_arena;
  int64_t lane_samples;  // at most so many samples are one thread's at a time; 0: all threads share each instruction
  int64_t lane_few;      // also for fewer samples than threads
  double init_scale;     // of the first state's noise
};

}  // namespace fastdiff
