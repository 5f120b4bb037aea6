// Files that the program writes.
#pragma once

#include <cstdint>
#include <string>

namespace fastdiff {

// What images are, in memory: [num, channels, height, width].
struct Images {
  const float* data;
  int64_t num, channels, height, width;
};

// All images in rows, each enlarged to 64 pixels or so: PNG of 8 bits. Values in [-1, 1] become 0 to 255, rounded to
// the nearest and clamped. The pixels are those of `fastdiff.files.images.write_grid`. 1 or 3 channels. Throws
// std::runtime_error, as below, for a NaN or a file that cannot be written.
void write_png(const std::string& path, const Images& images);

// float32 as they are, in NumPy's format.
void write_npy(const std::string& path, const Images& images);

}  // namespace fastdiff
