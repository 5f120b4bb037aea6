// The op that packs a layer's weights for a plan.
#include "packing.h"

#include <cstdint>

#include "checks.h"
#include "kernels.h"
#include "rounding.h"
#include "tensors.h"
#include "threads.h"

namespace fastdiff {

void plan_pack_cpu(Tensor weight, Tensor packed, int64_t algorithm, bool pairs) {
  STD_TORCH_CHECK(weight.dim() == 3 && weight.is_contiguous() && weight.size(2) <= 49 &&
                      (weight.scalar_type() == ScalarType::Float || weight.scalar_type() == ScalarType::Double),
                  "weight must be float32 or float64 [C_out, C, taps], contiguous, of 49 taps at most, got ",
                  described(weight));
  STD_TORCH_CHECK(0 <= algorithm && algorithm < PLAN_ALGORITHMS && (algorithm == PLAN_DIRECT || weight.size(2) == 9),
                  "algorithm must be 0, or 1 or 2 for 9 taps, got ", algorithm, " for ", weight.size(2));
  const PackedLayerArgs args = {.weight = weight.data_ptr(),
                                .wide = weight.scalar_type() == ScalarType::Double,
                                .pairs = pairs,
                                .algorithm = static_cast<PlanAlgorithm>(algorithm),
                                .channels_out = weight.size(0),
                                .channels = weight.size(1),
                                .taps = weight.size(2),
                                .packed = static_cast<float*>(packed.data_ptr())};
  const int64_t points = algorithm == PLAN_DIRECT ? args.taps : algorithm == PLAN_WINOGRAD4 ? 36 : 16;
  const int64_t panels = ceil_div(args.channels_out, PANEL), words = pairs ? ceil_div(args.channels, 2) : args.channels;
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Float && packed.dim() == 1 && packed.is_contiguous() &&
                      packed.size(0) == points * panels * words * PANEL,
                  "packed must be float32 [", points * panels * words * PANEL, "], got ", described(packed));
  check_apart(extent_of("packed", packed), extent_of("weight", weight));
  // A name in the environment that is no instruction set raises here: loops keep no message.
  const auto run = kernels().packing;
  parallel_for(0, panels * ceil_div(args.channels, PACKED_ROWS), 1,
               [&](int64_t first, int64_t last) { run(args, first, last); });
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("plan_pack", TORCH_BOX(&plan_pack_cpu)); }

}  // namespace fastdiff
