// The plan's attentions that have learned keys and values in front of those of the pixels.
//
// q, k and v of a sample are [pixels, 3 * width], heads of d numbers each, whole vectors, zeros behind the first
// `groups`. The learned ones are [keys and values, heads, memory, d] among the weights.
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

// Where the keys (part 0) or values (part 1) of a head begin, and from one to the next.
struct Tokens {
  const float *learned, *pixels;
  int64_t learned_stride, stride;
};

FD_INLINE Tokens tokens_of(const Work& w, int64_t sample, int64_t head, int64_t part) {
  const Instruction& i = w.i;
  const int64_t width = attention_width(i), d = width / i.heads;
  return {w.weights + i.weight + (part * i.heads + head) * i.memory * d,
          at(w, i.source, sample, i.height * i.width * i.channels) + (1 + part) * width + head * d, d, i.channels};
}

// The head's k^T in panels, [panels of keys, d, PANEL], then its values, [keys, d]: the learned ones, then the pixels'.
static void memory_keys(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t keys = attention_keys_of(i), d = attention_width(i) / i.heads, panels = panels_of(keys);
  const Tokens k = tokens_of(w, unit / i.heads, unit % i.heads, 0), v = tokens_of(w, unit / i.heads, unit % i.heads, 1);
  float* to = w.shared + unit * memory_head(i);
  for (int64_t key = 0; key < panels * PANEL; ++key) {
    const float* from = key < i.memory ? k.learned + key * k.learned_stride : k.pixels + (key - i.memory) * k.stride;
    float* column = to + key / PANEL * d * PANEL + key % PANEL;
    for (int64_t c = 0; c < d; ++c) column[c * PANEL] = key < keys ? from[c] : 0.0f;
  }
  to += panels * d * PANEL;
  for (int64_t key = 0; key < keys; ++key, to += d) {
    const float* from = key < i.memory ? v.learned + key * v.learned_stride : v.pixels + (key - i.memory) * v.stride;
    for (int64_t c = 0; c < d; c += 16) store16(to + c, load16(from + c));
  }
}

// Rows of softmax(q k^T) v; q comes scaled. scores: [QUERY_BLOCK, panels of keys * PANEL]; target: [pixels, width].
static void memory_queries(const Work& w, int64_t unit, float* scores) {
  const Instruction& i = w.i;
  const int64_t pixels = i.height * i.width, keys = attention_keys_of(i), width = attention_width(i),
                d = width / i.heads;
  const int64_t blocks = ceil_div(pixels, QUERY_BLOCK), panels = panels_of(keys), stride = panels * PANEL, none = 0;
  const int64_t pair = unit / blocks, sample = pair / i.heads, head = pair % i.heads;
  const int64_t first = unit % blocks * QUERY_BLOCK;
  const int64_t count = pixels - first < QUERY_BLOCK ? pixels - first : QUERY_BLOCK;
  const float* queries = at(w, i.source, sample, pixels * i.channels) + first * i.channels + head * d;
  const float *packed = w.shared + pair * memory_head(i), *values = packed + stride * d;
  float* to = at(w, i.target, sample, pixels * width) + first * width + head * d;
  const float* a[GEMM_ROWS];
  for (int64_t q = 0; q < count; q += GEMM_ROWS) {
    const int64_t rows = count - q < GEMM_ROWS ? count - q : GEMM_ROWS;
    for (int64_t m = 0; m < rows; ++m) a[m] = queries + (q + m) * i.channels;
    for (int64_t panel = 0; panel < panels; ++panel)
      multiply_panel(
          rows, a, &none, 1, d, packed + panel * d * PANEL, PANEL, keys_of(keys, panel),
          [&](int m, int64_t v, f32x16 sum) { store16(scores + (q + m) * stride + panel * PANEL + 16 * v, sum); });
    for (int64_t m = 0; m < rows; ++m) softmax(scores + (q + m) * stride, keys);
    for (int64_t m = 0; m < rows; ++m) a[m] = scores + (q + m) * stride;
    multiply_panel(rows, a, &none, 1, keys, values, d, d,
                   [&](int m, int64_t v, f32x16 sum) { store16(to + (q + m) * width + 16 * v, sum); });
  }
}

// The context of a head, [d of keys, d of values] in w.shared: sum over all tokens of softmax(k) v^T, the softmax over
// the tokens, times groups^(-1/2). scratch: [d], [d] and [d, LINEAR_BLOCK].
static void linear_context(const Work& w, int64_t unit, float* scratch) {
  const Instruction& i = w.i;
  const int64_t pixels = i.height * i.width, d = attention_width(i) / i.heads, none = 0;
  const Tokens k = tokens_of(w, unit / i.heads, unit % i.heads, 0), v = tokens_of(w, unit / i.heads, unit % i.heads, 1);
  float *largest = scratch, *sums = scratch + d, *powers = scratch + 2 * d, *context = w.shared + unit * d * d;
  const auto key = [&](int64_t token) {
    return token < i.memory ? k.learned + token * k.learned_stride : k.pixels + (token - i.memory) * k.stride;
  };
  for (int64_t c = 0; c < d; c += 16) {
    f32x16 most = load16(key(0) + c);
    for (int64_t token = 1; token < i.memory + pixels; ++token) most = max_v(load16(key(token) + c), most);
    store16(largest + c, most);
    store16(sums + c, (f32x16){});
  }
  for (int64_t n = 0; n < d * d; n += 16) store16(context + n, (f32x16){});
  // Blocks of the learned tokens, then of the pixels.
  for (int64_t first = 0, count; first < i.memory + pixels; first += count) {
    const int64_t end = first < i.memory ? i.memory : i.memory + pixels;
    count = end - first < LINEAR_BLOCK ? end - first : LINEAR_BLOCK;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t c = 0; c < d; c += 16) {
        const f32x16 power = exp_v(load16(key(first + j) + c) - load16(largest + c));
        store16(sums + c, load16(sums + c) + power);
        for (int lane = 0; lane < 16; ++lane) powers[(c + lane) * LINEAR_BLOCK + j] = power[lane];
      }
    const bool learned = first < i.memory;
    const float* values = learned ? v.learned + first * v.learned_stride : v.pixels + (first - i.memory) * v.stride;
    for (int64_t c = 0; c < d; c += GEMM_ROWS) {
      const int64_t rows = d - c < GEMM_ROWS ? d - c : GEMM_ROWS;
      const float* a[GEMM_ROWS];
      for (int64_t m = 0; m < rows; ++m) a[m] = powers + (c + m) * LINEAR_BLOCK;
      multiply_panel(rows, a, &none, 1, count, values, learned ? v.learned_stride : v.stride, d,
                     [&](int m, int64_t u, f32x16 sum) {
                       float* place = context + (c + m) * d + 16 * u;
                       store16(place, load16(place) + sum);
                     });
    }
  }
  const float scale = 1.0f / __builtin_sqrtf((float)i.groups);
  for (int64_t c = 0; c < d; ++c)
    for (int64_t n = 0; n < d; n += 16) store16(context + c * d + n, load16(context + c * d + n) * (scale / sums[c]));
}

// A block of pixels: softmax(q) context, the softmax over the channels of each head. rows: room for [GEMM_ROWS, d].
static void linear_queries(const Work& w, int64_t unit, float* softened) {
  const Instruction& i = w.i;
  const int64_t pixels = i.height * i.width, width = attention_width(i), d = width / i.heads, none = 0;
  const int64_t blocks = ceil_div(pixels, LINEAR_BLOCK), sample = unit / blocks, first = unit % blocks * LINEAR_BLOCK;
  const int64_t last = first + LINEAR_BLOCK < pixels ? first + LINEAR_BLOCK : pixels;
  const float* queries = at(w, i.source, sample, pixels * i.channels);
  float* to = at(w, i.target, sample, pixels * width);
  for (int64_t head = 0; head < i.heads; ++head)
    for (int64_t p = first; p < last; p += GEMM_ROWS) {
      const int64_t rows = last - p < GEMM_ROWS ? last - p : GEMM_ROWS;
      const float* a[GEMM_ROWS];
      for (int64_t m = 0; m < rows; ++m) {
        float* row = softened + m * d;
        for (int64_t c = 0; c < d; c += 16) store16(row + c, load16(queries + (p + m) * i.channels + head * d + c));
        softmax(row, i.groups);
        a[m] = row;
      }
      multiply_panel(rows, a, &none, 1, d, w.shared + (sample * i.heads + head) * d * d, d, d,
                     [&](int m, int64_t v, f32x16 sum) { store16(to + (p + m) * width + head * d + 16 * v, sum); });
    }
}

}  // namespace fastdiff::FD_VARIANT
