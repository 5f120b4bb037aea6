// A layer's weights as the plan reads them. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "plan_layout.h"

namespace fastdiff {

// weight: [C_out, C, taps], float32 or, where `wide`, float64. packed: direct [panels, taps, words of C, PANEL], by
// Winograd's method [points, panels, words of C, PANEL], each kernel g as G g G^T; zero where there is no column, which
// is not written. In pairs two rows are words of bfloat16 numbers, the first in the lower half.
struct PackedLayerArgs {
  const void* weight;
  bool wide, pairs;
  PlanAlgorithm algorithm;
  int64_t channels_out, channels, taps;
  float* packed;
};

// Rows of a unit of work, which is that of a panel.
constexpr int64_t PACKED_ROWS = 16;

}  // namespace fastdiff
