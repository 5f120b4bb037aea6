// The command line of the program.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastdiff {

// The message names the option.
struct BadOption : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string file, out = "samples.png";
  int64_t num = 16;
  uint64_t seed = 0;
  int64_t start_id = 0;
  std::vector<int64_t> sample_ids, labels;  // empty: none are given
  int64_t threads = 0, batch = 0;           // 0: the library's choice
  bool info = false, help = false;
};

extern const char USAGE[];

// Throws BadOption.
Arguments arguments_of(int count, const char* const* words);

}  // namespace fastdiff
