// Samples of an exported model.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "fastdiff.h"
#include "model.h"

namespace fastdiff {

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// See fastdiff_sample. Throws OutOfMemory, or std::runtime_error for arguments that do not fit.
void sample(const Model& model, int64_t num, const fastdiff_options& options, float* images);

}  // namespace fastdiff
