// The op `dropout`.
#include "dropout.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "checks.h"
#include "kernels.h"
#include "layers.h"
#include "noise_layout.h"
#include "tensors.h"
#include "threads.h"

namespace fastdiff {

void dropout(const DropoutArgs& args, int64_t batch) {
  const Kernels& variant = kernels();
  const int64_t grain = 4 * DROPOUT_UNIT / std::min(args.numel, DROPOUT_UNIT);
  parallel_for(0, batch * dropout_units_of_sample(args), grain,
               [&](int64_t first, int64_t last) { variant.dropout(args, first, last); });
}

// y = x * scale where an element's word is at most last_kept, else 0. x and y are dense alike, [B, ...]; a sample's
// elements count in memory order. sample_ids: [B], or none for 0..B-1.
void dropout_out_cpu(Tensor x, Tensor seed, std::optional<Tensor> sample_ids, int64_t stream, int64_t last_kept,
                     double scale, Tensor y) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, "seed must be one int64 number");
  check_floating("x", x);
  STD_TORCH_CHECK(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  check_same_shape("y", y, x);
  const bool channels_last = is_channels_last(x);
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type() && is_dense(x, channels_last) && is_dense(y, channels_last),
                  "x and y must be dense, of one type and memory format, got ", described(x), " and ", described(y));
  check_apart(extent_of("y", y), extent_of("x", x), true);
  check_apart(extent_of("y", y), extent_of("seed", seed));
  STD_TORCH_CHECK(0 <= stream && stream < int64_t{1} << (32 - STREAM_SHIFT), "stream must have 4 bits, got ", stream);
  STD_TORCH_CHECK(0 <= last_kept && last_kept <= 0xFFFFFFFF, "last_kept must be a 32-bit word");
  DropoutArgs args;
  args.x = matrix_of(x, channels_last);
  args.y = matrix_of(y, channels_last);
  args.numel = elements_from(x, 1);
  args.sample_ids = nullptr;
  if (sample_ids) {
    args.sample_ids = index_data("sample_ids", *sample_ids, x.size(0), false);
    check_apart(extent_of("y", y), extent_of("sample_ids", *sample_ids));
  }
  args.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data_ptr()));
  args.stream = static_cast<uint32_t>(stream);
  args.last_kept = static_cast<uint32_t>(last_kept);
  args.scale = scale;
  if (x.numel() == 0) return;
  dropout(args, x.size(0));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("dropout_out", TORCH_BOX(&dropout_out_cpu)); }

}  // namespace fastdiff
