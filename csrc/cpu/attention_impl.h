// The plan's attention.
#pragma once

#include <cstdint>

#include "gemm_impl.h"
#include "images_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "rounding.h"
#include "scores_impl.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// k^T of one head of one sample, to w.shared: [B * heads][panels of keys, d, PANEL], zero behind the last key as far as
// vectors reach. Keys: columns of q, k, v [keys, 3 * width], or of the second source [keys, width].
static void attention_keys(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, width = attention_width(i), d = width / i.heads;
  const int64_t sample = unit / i.heads, head = unit % i.heads, stride = i.source2 < 0 ? i.channels : width;
  const float* from = i.source2 < 0 ? at(w, i.source, sample, keys * i.channels) + width + head * d
                                    : at(w, i.source2, sample, keys * width) + head * d;
  const float* factors = i.norm < 0 ? nullptr : at(w, i.norm, sample, 2 * width) + head * d;
  float* to = w.shared + unit * panels_of(keys) * PANEL * d;
  for (int64_t panel = 0; panel < panels_of(keys); ++panel)
    for (int64_t k = 0; k < d; ++k) {
      const float factor = factors == nullptr ? 1.0f : factors[k],
                  offset = factors == nullptr ? 0.0f : factors[width + k];
      for (int64_t j = 0; j < keys_of(keys, panel); ++j) {
        const int64_t key = panel * PANEL + j;
        to[(panel * d + k) * PANEL + j] = key < keys ? from[key * stride + k] * factor + offset : 0.0f;
      }
    }
}

// Rows of softmax(q k^T) v, plus the residual; q comes scaled. scores: [QUERY_BLOCK, panels of keys * PANEL]; q and v:
// columns of the source [keys, C]; target and residual: [keys, width].
static void attention_queries(const Work& w, int64_t unit, float* scores) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, width = attention_width(i), d = width / i.heads;
  const int64_t blocks = ceil_div(keys, QUERY_BLOCK), panels = panels_of(keys), stride = panels * PANEL, none = 0;
  const int64_t pair = unit / blocks, sample = pair / i.heads, head = pair % i.heads;
  const int64_t first = unit % blocks * QUERY_BLOCK, count = keys - first < QUERY_BLOCK ? keys - first : QUERY_BLOCK;
  const float* qkv = at(w, i.source, sample, keys * i.channels);
  const float* packed = w.shared + pair * panels * PANEL * d;
  float* to = at(w, i.target, sample, keys * width) + first * width + head * d;
  const float* residual = i.residual < 0 ? nullptr : at(w, i.residual, sample, keys * width) + first * width + head * d;
  const float* a[GEMM_ROWS];
  for (int64_t q = 0; q < count; q += GEMM_ROWS) {
    const int64_t rows = count - q < GEMM_ROWS ? count - q : GEMM_ROWS;
    for (int64_t m = 0; m < rows; ++m) a[m] = qkv + (first + q + m) * i.channels + head * d;
    for (int64_t panel = 0; panel < panels; ++panel)
      multiply_panel(
          rows, a, &none, 1, d, packed + panel * d * PANEL, PANEL, keys_of(keys, panel),
          [&](int m, int64_t v, f32x16 sum) { store16(scores + (q + m) * stride + panel * PANEL + 16 * v, sum); });
    for (int64_t m = 0; m < rows; ++m) softmax(scores + (q + m) * stride, keys);
    for (int64_t m = 0; m < rows; ++m) a[m] = scores + (q + m) * stride;
    for (int64_t c = 0; c < d; c += PANEL)
      multiply_panel(rows, a, &none, 1, keys, qkv + attention_values(i) + head * d + c, i.channels,
                     d - c < PANEL ? d - c : PANEL, [&](int m, int64_t v, f32x16 sum) {
                       const int64_t place = (q + m) * width + c + 16 * v;
                       store16(to + place, residual == nullptr ? sum : sum + load16(residual + place));
                     });
  }
}

}  // namespace fastdiff::FD_VARIANT
