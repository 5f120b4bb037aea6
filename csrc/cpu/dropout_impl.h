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

// out: [64], of a sample's elements from `first` on: `scale` where one is kept, else 0.
FD_INLINE void dropout_factors(const DropoutArgs& args, uint64_t sample_id, int64_t first, float* out) {
  u32x16 c[4];
  words_chunk(c, (uint32_t)(first / 4), sample_id, args.stream << STREAM_SHIFT, args.seed);
  const u32x16 last = args.last_kept - (u32x16){};
  const f32x16 scale = splat((float)args.scale), none = {};
  store_blocks(out, select(c[0] <= last, scale, none), select(c[1] <= last, scale, none),
               select(c[2] <= last, scale, none), select(c[3] <= last, scale, none));
}

// y of the elements of units [first_unit, last_unit), DROPOUT_UNIT of a sample each.
template <typename A>
static void dropout_units(const DropoutArgs& args, int64_t first_unit, int64_t last_unit) {
  alignas(64) float factors[NOISE_CHUNK];
  alignas(64) A values[NOISE_CHUNK];
  const int64_t units = dropout_units_of_sample(args);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const int64_t sample = unit / units, begin = unit % units * DROPOUT_UNIT;
    const uint64_t id = (uint64_t)(args.sample_ids == nullptr ? sample : args.sample_ids[sample]);
    const int64_t end = begin + DROPOUT_UNIT < args.numel ? begin + DROPOUT_UNIT : args.numel;
    for (int64_t first = begin; first < end; first += NOISE_CHUNK) {
      const int64_t n = end - first < NOISE_CHUNK ? end - first : NOISE_CHUNK;
      const int64_t offset = sample * args.numel + first;
      dropout_factors(args, id, first, factors);
      load_run(values, args.x, offset, n);
      // What is dropped is 0, whatever it was.
      for (int64_t i = 0; i < n; ++i) values[i] = factors[i] != 0.0f ? values[i] * (A)args.scale : A(0);
      store_run(values, args.y, offset, n);
    }
  }
}

void run_dropout(const DropoutArgs& args, int64_t first_unit, int64_t last_unit) {
  if (args.x.dtype == Dtype::F64)
    dropout_units<double>(args, first_unit, last_unit);
  else
    dropout_units<float>(args, first_unit, last_unit);
}

}  // namespace fastdiff::FD_VARIANT
