// Attention's scores: panels of keys, and the softmax of a row.
#pragma once

#include <cstdint>

#include "plan_layout.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Columns of a panel of keys, in whole vectors.
FD_INLINE int64_t keys_of(int64_t keys, int64_t panel) {
  const int64_t left = round_up(keys - panel * PANEL, 16);
  return left < PANEL ? left : PANEL;
}

// The largest score of a row, and the sum of the exponentials of all less that.
struct SoftmaxSums {
  float largest, total;
};

// row: [count], with room for whole vectors; what lies behind the last key, up to a vector's end, becomes zero.
static inline SoftmaxSums softmax(float* row, int64_t count) {
  const float lowest = -__builtin_inff();
  for (int64_t j = count; j % 16 != 0; ++j) row[j] = lowest;
  f32x16 most = splat(lowest), sums = {};
  for (int64_t j = 0; j < count; j += 16) {
    const f32x16 v = load16(row + j);
    most = select(v > most, v, most);
  }
  float largest = most[0], sum = 0;
  for (int k = 1; k < 16; ++k) largest = most[k] > largest ? most[k] : largest;
  for (int64_t j = 0; j < count; j += 16) {
    const f32x16 v = load16(row + j), e = select(v == lowest, (f32x16){}, exp_v(v - largest));
    sums += e;
    store16(row + j, e);
  }
  for (int k = 0; k < 16; ++k) sum += sums[k];
  const float scale = 1.0f / sum;
  for (int64_t j = 0; j < count; j += 16) store16(row + j, load16(row + j) * scale);
  return {largest, sum};
}

}  // namespace fastdiff::FD_VARIANT
