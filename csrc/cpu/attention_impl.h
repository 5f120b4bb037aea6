// The plan's attention.
#pragma once

#include <cstdint>

#include "factors_impl.h"
#include "gemm_impl.h"
#include "images_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "rounding.h"
#include "scores_impl.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Where the keys of a head of a sample come from: key j, channel k is from[j * stride + k] * factors[k] +
// factors[width + k], or without factors the number itself. Columns of q, k, v [keys, 3 * width], or of the second
// source [keys, width].
struct Keys {
  const float *from, *factors;
  int64_t stride, width;

  // Channels [k, k + 16) of a key.
  inline __attribute__((always_inline)) f32x16 load(int64_t key, int64_t k) const {
    const f32x16 v = load16(from + key * stride + k);
    return factors == nullptr ? v : v * load16(factors + k) + load16(factors + width + k);
  }
};

FD_INLINE Keys keys_at(const Work& w, int64_t sample, int64_t head) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, width = attention_width(i), d = width / i.heads;
  return {i.source2 < 0 ? at(w, i.source, sample, keys * i.channels) + width + head * d
                        : at(w, i.source2, sample, keys * width) + head * d,
          i.norm < 0 ? nullptr : at(w, i.norm, sample, 2 * width) + head * d, i.source2 < 0 ? i.channels : width,
          width};
}

// k^T of one head of one sample, to w.shared: [B * heads][panels of keys, d, PANEL], zero behind the last key as far as
// vectors reach.
static inline void attention_keys(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, d = attention_width(i) / i.heads;
  const Keys k_of = keys_at(w, unit / i.heads, unit % i.heads);
  float* to = w.shared + unit * attention_shared(i);
  for (int64_t panel = 0; panel < panels_of(keys); ++panel)
    for (int64_t k = 0; k < d; ++k) {
      const float factor = k_of.factors == nullptr ? 1.0f : k_of.factors[k],
                  offset = k_of.factors == nullptr ? 0.0f : k_of.factors[k_of.width + k];
      for (int64_t j = 0; j < keys_of(keys, panel); ++j) {
        const int64_t key = panel * PANEL + j;
        to[(panel * d + k) * PANEL + j] = key < keys ? k_of.from[key * k_of.stride + k] * factor + offset : 0.0f;
      }
    }
}

// Rows of softmax(q k^T) v, plus the residual; q comes scaled. scores: [QUERY_BLOCK, panels of keys * PANEL], and
// behind them room for [F::ROWS, words of d] where F is Pairs; q and v: columns of the source [keys, C]; target and
// residual: [keys, width].
template <typename F>
static void attention_queries(const Work& w, int64_t unit, float* scores) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, width = attention_width(i), d = width / i.heads;
  const int64_t blocks = ceil_div(keys, QUERY_BLOCK), panels = panels_of(keys), stride = panels * PANEL, none = 0;
  const int64_t pair = unit / blocks, sample = pair / i.heads, head = pair % i.heads;
  const int64_t first = unit % blocks * QUERY_BLOCK, count = keys - first < QUERY_BLOCK ? keys - first : QUERY_BLOCK;
  const float* qkv = at(w, i.source, sample, keys * i.channels);
  const int64_t words = F::words(d);
  const float* packed = w.shared + pair * attention_shared(i);
  const float* values = F::PAIRED ? packed + panels * PANEL * words : qkv + attention_values(i) + head * d;
  const int64_t values_stride = F::PAIRED ? d : i.channels;
  float* rounded = scores + QUERY_BLOCK * stride;
  float* to = at(w, i.target, sample, keys * width) + first * width + head * d;
  const float* residual = i.residual < 0 ? nullptr : at(w, i.residual, sample, keys * width) + first * width + head * d;
  const float* a[F::ROWS];
  for (int64_t q = 0; q < count; q += F::ROWS) {
    const int64_t rows = count - q < F::ROWS ? count - q : F::ROWS;
    for (int64_t m = 0; m < rows; ++m) {
      a[m] = qkv + (first + q + m) * i.channels + head * d;
      if (!F::PAIRED) continue;
      round_row(a[m], d, rounded + m * words);
      a[m] = rounded + m * words;
    }
    for (int64_t panel = 0; panel < panels; ++panel)
      multiply_panel<F>(
          rows, a, &none, 1, words, packed + panel * words * PANEL, PANEL, keys_of(keys, panel),
          [&](int m, int64_t v, f32x16 sum) { store16(scores + (q + m) * stride + panel * PANEL + 16 * v, sum); });
    for (int64_t m = 0; m < rows; ++m) {
      float* row = scores + (q + m) * stride;
      softmax(row, keys);
      // In place: words are written behind what is read.
      if (F::PAIRED) round_row(row, keys, row);
      a[m] = row;
    }
    for (int64_t c = 0; c < d; c += PANEL)
      multiply_panel<F>(rows, a, &none, 1, F::words(keys), values + c, values_stride, d - c < PANEL ? d - c : PANEL,
                        [&](int m, int64_t v, f32x16 sum) {
                          const int64_t place = (q + m) * width + c + 16 * v;
                          store16(to + place, residual == nullptr ? sum : sum + load16(residual + place));
                        });
  }
}

}  // namespace fastdiff::FD_VARIANT
