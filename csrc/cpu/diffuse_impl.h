// The op `diffuse`. Passes over a tile read and write the first-level cache; each tensor crosses memory once.
#pragma once

#include <cstdint>

#include "diffuse.h"
#include "matrix.h"
#include "noise_impl.h"
#include "tiles_impl.h"
#include "tiling.h"

namespace fastdiff::FD_VARIANT {

// x_t = c0 x0 + c1 z and target = c2 x0 + c3 z, with c the row [4] of the table that the sample's t names.
template <typename A>
static void diffuse_tiles(const DiffuseArgs& args, int64_t first_unit, int64_t last_unit) {
  alignas(64) A x_buffer[BUFFER], z_buffer[BUFFER], x_t_buffer[BUFFER], target_buffer[BUFFER];
  const Tiling tiles = tiling(args.shape);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const Tile tile = tile_of(args.shape, tiles, unit);
    const A* c = (const A*)args.table + 4 * args.t[tile.sample];
    const A* x = load_tile(args.x0, tile, x_buffer);
    const A* z = noise_tile(args.noise, args.shape, tile, z_buffer);
    const int64_t n = tile.rows * tile.cols;
    // uint8 data: 2 v / (levels - 1) - 1, folded into the coefficients of v and a constant.
    const bool bytes = args.x0.dtype == Dtype::U8;
    const A scale = bytes ? A(2) / A(args.levels - 1) : A(1), shift = bytes ? A(-1) : A(0);
    const A c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
    A* x_t = result_tile(args.x_t, tile, x_t_buffer);
    if (args.target.data == nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) x_t[i] = c0 * (x[i] * scale + shift) + c1 * z[i];
    } else {
      A* target = result_tile(args.target, tile, target_buffer);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        const A x0 = x[i] * scale + shift, noise = z[i];
        x_t[i] = c0 * x0 + c1 * noise;
        target[i] = c2 * x0 + c3 * noise;
      }
      if (target == target_buffer) write_tile(args.target, tile, target);
    }
    if (x_t == x_t_buffer) write_tile(args.x_t, tile, x_t);
  }
}

void run_diffuse(const DiffuseArgs& args, int64_t first_unit, int64_t last_unit) {
  if (args.x0.dtype == Dtype::F64)
    diffuse_tiles<double>(args, first_unit, last_unit);
  else
    diffuse_tiles<float>(args, first_unit, last_unit);
}

}  // namespace fastdiff::FD_VARIANT
