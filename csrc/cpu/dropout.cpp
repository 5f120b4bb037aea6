// The op `dropout`.
#include "dropout.h"

#include <cstdint>

#include "kernels.h"
#include "tensors.h"

namespace fastdiff {

// y = x * scale where the word of an element, in memory order, is at most last_kept; else 0. x and y are dense alike.
void dropout_out_cpu(Tensor x, Tensor seed, int64_t stream, int64_t last_kept, double scale, Tensor y) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, "seed must be one int64 number");
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type() && y.numel() == x.numel(), "y must have x's type and size");
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
