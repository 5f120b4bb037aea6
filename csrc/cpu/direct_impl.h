// The plan's convolutions without a transform: as products with panels of weights, or by dots where outputs are few.
#pragma once

#include <cstdint>

#include "factors_impl.h"
#include "gemm_impl.h"
#include "images_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Pixels [first, last) of a convolution to OUTPUTS channels. taps: [num_taps], where each begins, in floats from the
// first; weights: [OUTPUTS, num_taps, C]; w.shared: [B, padded.height, padded.width, C].
template <int OUTPUTS>
static void multiply_dots(const Work& w, const Padded& padded, const int64_t* taps, const float* weights, int64_t first,
                          int64_t last) {
  const Instruction& i = w.i;
  const int64_t channels = i.channels + i.channels2, pixels = i.height * i.width, num_taps = i.kernel * i.kernel;
  for (int64_t p = first; p < last; ++p) {
    const int64_t sample = p / pixels, y = p % pixels / i.width, x = p % i.width;
    const float* from = w.shared + ((sample * padded.height + y * i.stride) * padded.width + x * i.stride) * channels;
    const float* by = weights;
    f32x16 sums[OUTPUTS] = {};
    for (int64_t tap = 0; tap < num_taps; ++tap)
      for (int64_t c = 0; c < channels; c += 16, by += 16) {
        const f32x16 v = load16(from + taps[tap] + c);
        for (int o = 0; o < OUTPUTS; ++o) sums[o] += v * load16(by + o * num_taps * channels);
      }
    f32x16 result = {};
    for (int o = 0; o < OUTPUTS; ++o) result[o] = sum_of<1>({sums[o]});
    writer_of(w, sample).write(p % pixels, 0, result);
  }
}

// weights: room for [channels_out, num_taps, C], which are taken from the panel [num_taps, C, PANEL].
static inline void direct_dots(const Work& w, const Padded& padded, const int64_t* taps, int64_t first, int64_t last,
                               float* weights) {
  const int64_t rows = w.i.kernel * w.i.kernel * (w.i.channels + w.i.channels2);
  for (int64_t o = 0; o < w.i.channels_out; ++o)
    for (int64_t row = 0; row < rows; ++row) weights[o * rows + row] = w.weights[w.i.weight + row * PANEL + o];
  switch (w.i.channels_out) {
    case 1: return multiply_dots<1>(w, padded, taps, weights, first, last);
    case 2: return multiply_dots<2>(w, padded, taps, weights, first, last);
    case 3: return multiply_dots<3>(w, padded, taps, weights, first, last);
    default: return multiply_dots<4>(w, padded, taps, weights, first, last);
  }
}

// Row `unit` of the padded input, to w.shared. scratch: room for [padded.width, C].
template <typename F>
static void direct_read(const Work& w, const Padded& padded, int64_t unit, float* scratch) {
  const int64_t channels = w.i.channels + w.i.channels2, words = F::words(channels);
  float* to = w.shared + unit * padded.width * words;
  float* numbers = F::PAIRED ? scratch : to;
  read_row(w, unit / padded.height, unit % padded.height - w.i.pad, padded.width, numbers);
  for (int64_t x = 0; F::PAIRED && x < padded.width; ++x) round_row(numbers + x * channels, channels, to + x * words);
}

// A block of pixels. Weights: [panels, num_taps, words of C, PANEL]. Input: [B, padded.height, padded.width, words of
// C] in w.shared, the source itself, or a block [pixels, words of C] that is copied to scratch, before a pixel [C].
template <typename F>
static void direct_multiply(const Work& w, int64_t threads, int64_t unit, float* scratch) {
  const Instruction& i = w.i;
  const Padded padded = padded_of(i);
  const int64_t channels = i.channels + i.channels2, words = F::words(channels);
  const int64_t pixels = i.height * i.width, all = w.batch * pixels;
  const int64_t blocks = ceil_div(all, padded.block), panels = panels_of(i.channels_out);
  const int64_t groups = panel_groups(i, padded, w.batch, threads);
  const int64_t block = unit % blocks, group = unit / blocks, first = block * padded.block;
  const int64_t last = first + padded.block < all ? first + padded.block : all;
  const float* input = w.shared;
  if (padded.pointwise) {
    input = padded.copied ? scratch - first * words : w.arena + i.source;
    float* pixel = scratch + padded.block * words;
    for (int64_t p = first; padded.copied && p < last; ++p) {
      float* to = scratch + (p - first) * words;
      read_pixel(w, p / pixels, p % pixels / i.width, p % i.width, F::PAIRED ? pixel : to);
      if (F::PAIRED) round_row(pixel, channels, to);
    }
  }
  int64_t taps[MOST_TAPS];
  for (int64_t ky = 0; ky < i.kernel; ++ky)
    for (int64_t kx = 0; kx < i.kernel; ++kx) taps[ky * i.kernel + kx] = (ky * padded.width + kx) * words;
  if constexpr (!F::PAIRED) {
    if (by_dots(i)) return direct_dots(w, padded, taps, first, last, scratch);
  }
  for (int64_t panel = group * panels / groups; panel < (group + 1) * panels / groups; ++panel) {
    const float* packed = w.weights + i.weight + panel * i.kernel * i.kernel * words * PANEL;
    const int64_t columns = i.channels_out - panel * PANEL < PANEL ? i.channels_out - panel * PANEL : PANEL;
    for (int64_t p = first; p < last; p += F::ROWS) {
      const int64_t rows = last - p < F::ROWS ? last - p : F::ROWS;
      const float* a[F::ROWS];
      Writer writers[F::ROWS];
      for (int64_t m = 0; m < rows; ++m) {
        const int64_t sample = (p + m) / pixels, y = (p + m) % pixels / i.width, x = (p + m) % i.width;
        writers[m] = writer_of(w, sample);
        a[m] = padded.pointwise
                   ? input + (p + m) * words
                   : input + ((sample * padded.height + y * i.stride) * padded.width + x * i.stride) * words;
      }
      multiply_panel<F>(
          rows, a, taps, i.kernel * i.kernel, words, packed, PANEL, columns,
          [&](int m, int64_t v, f32x16 sum) { writers[m].write((p + m) % pixels, panel * PANEL + 16 * v, sum); });
    }
  }
}

}  // namespace fastdiff::FD_VARIANT
