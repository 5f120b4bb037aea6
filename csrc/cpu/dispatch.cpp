#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "elementwise.h"

namespace fastdiff {

Tiling tiling(const Shape& shape) {
  Tiling tiles;
  if (!shape.channels_last) {
    tiles = {1, TILE, 1, (shape.cols + TILE - 1) / TILE};
  } else {
    tiles.tile_cols = shape.cols < TILE_COLS ? shape.cols : TILE_COLS;
    tiles.tile_rows = TILE / tiles.tile_cols / NOISE_CHUNK * NOISE_CHUNK;
    if (tiles.tile_rows < NOISE_CHUNK) tiles.tile_rows = NOISE_CHUNK;
    tiles.row_tiles = (shape.rows + tiles.tile_rows - 1) / tiles.tile_rows;
    tiles.col_tiles = (shape.cols + tiles.tile_cols - 1) / tiles.tile_cols;
  }
  return tiles;
}

int64_t num_units(const Shape& shape) {
  if (shape.batch == 0 || shape.rows == 0 || shape.cols == 0) return 0;
  const Tiling tiles = tiling(shape);
  return shape.batch * tiles.row_tiles * tiles.col_tiles;
}

static const Kernels& choose() {
  const char* wanted = std::getenv("FASTDIFF_CPU_ISA");
  const Kernels* available[3];
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = &kernels_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = &kernels_avx2;
#endif
  available[count++] = &kernels_generic;
  if (wanted == nullptr || *wanted == '\0') return *available[0];
  for (int i = 0; i < count; ++i)
    if (std::strcmp(available[i]->name, wanted) == 0) return *available[i];
  std::string message = std::string("FASTDIFF_CPU_ISA must be one of those this machine runs:");
  for (int i = 0; i < count; ++i) message += std::string(" ") + available[i]->name;
  throw std::runtime_error(message + ", got " + wanted);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastdiff
