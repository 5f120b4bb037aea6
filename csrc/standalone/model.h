// An exported model: its file, checked, and what lies where in it.
#pragma once

#include <cstddef>
#include <string>

#include "file_layout.h"
#include "plan.h"

namespace fastdiff {

// Bytes of a file mapped into memory, read only.
class Mapping {
 public:
  // Throws std::runtime_error where it cannot be read.
  explicit Mapping(const char* path);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  const void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Plain addresses into the file.
struct Model {
  FileNumbers numbers;
  std::string text;
  const float* table;     // [rows, ROW_WIDTH]
  const float* embedded;  // [rows, embedding]
  const float* labels;    // [classes, embedding]
  Code code, time_code;   // for one sample
  ConstFloats weights, time_weights;
  size_t bytes;  // of the file

  int64_t pixels() const { return numbers.height * numbers.width; }
  int64_t image() const { return pixels() * numbers.channels; }
  Ends ends() const { return {numbers.input, image(), numbers.output, pixels() * numbers.channels_out}; }
  Ends time_ends() const { return {numbers.time_input, numbers.embedding, numbers.time_output, numbers.time_width}; }
};

// Checks everything before it is used: the file's size and checksums, every size, every number and every place. Throws
// std::runtime_error with a sentence.
Model read_model(const void* data, size_t size);

// The instructions for a batch: the arena is as many times as long, and so are its places.
void scale_places(Instruction& instruction, int64_t batch);

}  // namespace fastdiff
