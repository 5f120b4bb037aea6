// The op `dropout`.
#include "dropout.h"

#include <cstdint>

#include "checks.h"
#include "kernels.h"
#include "noise_layout.h"
#include "tensors.h"

namespace fastdiff {

// y = x * scale where the word of an element, in memory order, is at most last_kept; else 0. x and y are dense alike.
void dropout_out_cpu(Tensor x, Tensor seed, int64_t stream, int64_t last_kept, double scale, Tensor y) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, "seed must be one int64 number");
  check_floating("x", x);
  check_same_shape("y", y, x);
  const bool channels_last = is_channels_last(x);
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type() && is_dense(x, channels_last) && is_dense(y, channels_last),
                  "x and y must be dense, of one type and memory format, got ", described(x), " and ", described(y));
  check_apart(extent_of("y", y), extent_of("x", x), true);
  check_apart(extent_of("y", y), extent_of("seed", seed));
  STD_TORCH_CHECK(0 <= stream && stream < int64_t{1} << (32 - STREAM_SHIFT), "stream must have 4 bits, got ", stream);
  STD_TORCH_CHECK(0 <= last_kept && last_kept <= 0xFFFFFFFF, "last_kept must be a 32-bit word");
  DropoutArgs args;
  args.x = {x.data_ptr(), dtype_of(x), 0, 0};
  args.y = {y.data_ptr(), dtype_of(y), 0, 0};
  args.numel = x.numel();
  args.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data_ptr()));
  args.stream = static_cast<uint32_t>(stream);
  args.last_kept = static_cast<uint32_t>(last_kept);
  args.scale = scale;
  const Kernels& variant = kernels();
  torch::stable::parallel_for(0, (args.numel + DROPOUT_UNIT - 1) / DROPOUT_UNIT, 4,
                              [&](int64_t first, int64_t last) { variant.dropout(args, first, last); });
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("dropout_out", TORCH_BOX(&dropout_out_cpu)); }

}  // namespace fastdiff
