// The op `dropout`.
#pragma once

#include <cstdint>

#include "convert_impl.h"
#include "dropout.h"
#include "matrix.h"
#include "noise_layout.h"
#include "philox_impl.h"
#include "tiling.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// out: [64], of the elements from `first` on: `scale` where one is kept, else 0.
FD_INLINE void dropout_factors(const DropoutArgs& args, int64_t first, float* out) {
  u32x16 c[4];
  words_chunk(c, (uint32_t)(first / 4), 0, args.stream << STREAM_SHIFT, args.seed);
  const u32x16 last = args.last_kept - (u32x16){};
  const f32x16 scale = splat((float)args.scale), none = {};
  store_blocks(out, select(c[0] <= last, scale, none), select(c[1] <= last, scale, none),
               select(c[2] <= last, scale, none), select(c[3] <= last, scale, none));
}

// y of the elements of units [first_unit, last_unit), DROPOUT_UNIT each.
template <typename A>
static void dropout_units(const DropoutArgs& args, int64_t first_unit, int64_t last_unit) {
  const int64_t end = last_unit * DROPOUT_UNIT < args.numel ? last_unit * DROPOUT_UNIT : args.numel;
  alignas(64) float factors[NOISE_CHUNK];
  alignas(64) A values[NOISE_CHUNK];
  for (int64_t first = first_unit * DROPOUT_UNIT; first < end; first += NOISE_CHUNK) {
    const int64_t n = end - first < NOISE_CHUNK ? end - first : NOISE_CHUNK;
    dropout_factors(args, first, factors);
    load_run(values, args.x, first, n);
    // What is dropped is 0, whatever it was.
    for (int64_t i = 0; i < n; ++i) values[i] = factors[i] != 0.0f ? values[i] * (A)args.scale : A(0);
    store_run(values, args.y, first, n);
  }
}

void run_dropout(const DropoutArgs& args, int64_t first_unit, int64_t last_unit) {
  if (args.x.dtype == Dtype::F64)
    dropout_units<double>(args, first_unit, last_unit);
  else
    dropout_units<float>(args, first_unit, last_unit);
}

}  // namespace fastdiff::FD_VARIANT
