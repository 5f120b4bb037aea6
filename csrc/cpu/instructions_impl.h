// The plan's instructions that are neither convolutions nor attention, and the way in to all of them but those in
// pairs.
#pragma once

#include <cstdint>

#include "attention_impl.h"
#include "convolution_impl.h"
#include "factors_impl.h"
#include "images_impl.h"
#include "instructions.h"
#include "memory_attention_impl.h"
#include "pixel_norm_impl.h"
#include "plan_layout.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Mean and sum of squares about it, per channel, over all pixels: source [pixels, C], target [2, C].
static void channel_stats(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t panels = panels_of(i.channels), sample = unit / panels, first = unit % panels * PANEL;
  const int64_t last = first + PANEL < i.channels ? first + PANEL : i.channels, pixels = i.height_in * i.width_in;
  const float* source = at(w, i.source, sample, pixels * i.channels);
  float* to = at(w, i.target, sample, 2 * i.channels);
  constexpr int64_t CHUNK = 64, PIVOT_PIXELS = 4;
  for (int64_t c = first; c < last; c += 16) {
    const int64_t count = last - c, num_pivot = pixels < PIVOT_PIXELS ? pixels : PIVOT_PIXELS;
    f32x16 pivot = {}, mean = {}, squares = {};
    for (int64_t k = 0; k < num_pivot; ++k) pivot += load_some(source + k * i.channels + c, count);
    pivot /= (float)num_pivot;
    for (int64_t start = 0; start < pixels; start += CHUNK) {
      const int64_t n = pixels - start < CHUNK ? pixels - start : CHUNK;
      const float* p = source + start * i.channels + c;
      const f32x16 from = pivot + mean;
      f32x16 sum = {}, products = {};
      for (int64_t k = 0; k < n; ++k) {
        const f32x16 d = load_some(p + k * i.channels, count) - from;
        sum += d;
        products += d * d;
      }
      merge_moments(sum, products, (float)n, (float)start, from, pivot, mean, squares);
    }
    store_some(to + c, mean + pivot, count);
    store_some(to + i.channels + c, squares, count);
  }
}

// Factor and offset of each channel: act(norm(x)) is then one multiplication and addition away. stats: [2, C] of each
// source; gamma, beta: [C]; scale: [2, C] with the shift, or nullptr; target: [2, C]. The sources may be multiplied by
// a number each first.
static void norm_factors(const Work& w, int64_t sample) {
  const Instruction& i = w.i;
  const int64_t total = i.channels + i.channels2, size = total / i.groups;
  const double pixels = (double)(i.height_in * i.width_in);
  const float* stats[2] = {at(w, i.stats, sample, 2 * i.channels),
                           i.stats2 < 0 ? nullptr : at(w, i.stats2, sample, 2 * i.channels2)};
  const float *gamma = w.weights + i.weight, *beta = w.weights + i.bias;
  const float* scale = i.time < 0 ? nullptr : time_of(w, sample);
  float* to = at(w, i.target, sample, 2 * total);
  const double epsilon = w.weights[i.epsilon];
  const double times[2] = {i.memory == 1 ? w.weights[i.epsilon + 1] : 1.0,
                           i.memory == 1 ? w.weights[i.epsilon + 2] : 1.0};
  for (int64_t g = 0; g < i.groups; ++g) {
    // A group may straddle both sources.
    const auto for_each_channel = [&](const auto& visit) __attribute__((always_inline)) {
      const int64_t first = g * size, last = first + size, inside = i.channels < last ? i.channels : last;
      const int64_t middle = inside < first ? first : inside;
      for (int64_t c = first; c < middle; ++c) visit(stats[0] + c, i.channels, times[0]);
      for (int64_t c = middle; c < last; ++c) visit(stats[1] + c - i.channels, i.channels2, times[1]);
    };
    double total_mean = 0, within = 0, between = 0;
    for_each_channel(
        [&](const float* s, int64_t count, double f) { total_mean += f * s[0], within += f * f * s[count]; });
    const double mean = total_mean / (double)size;
    for_each_channel([&](const float* s, int64_t, double f) { between += (f * s[0] - mean) * (f * s[0] - mean); });
    const double rstd = 1 / __builtin_sqrt((within / pixels + between) / (double)size + epsilon);
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      double factor = rstd * gamma[c], offset = beta[c] - mean * factor;
      if (scale != nullptr) {
        factor *= 1 + (double)scale[c];
        offset = offset * (1 + (double)scale[c]) + scale[total + c];
      }
      to[c] = (float)(factor * times[c < i.channels ? 0 : 1]);
      to[total + c] = (float)offset;
    }
  }
}

// A row of the mean of 2x2 pixels, or of each pixel twice, with the filter (1, 3, 3, 1) in both directions, behind norm
// and activation. One source [H, W, C], zeros outside of it.
static void filter_row(const Work& w, int64_t unit, bool down) {
  const Instruction& i = w.i;
  const int64_t sample = unit / i.height, y = unit % i.height;
  const float* source = at(w, i.source, sample, i.height_in * i.width_in * i.channels);
  const float* factors = i.norm >= 0 ? at(w, i.norm, sample, 2 * i.channels) : nullptr;
  float* to = at(w, i.target, sample, i.height * i.width * i.channels) + y * i.width * i.channels;
  // The pixel `first` and those that follow, `count` of them, with these numbers.
  struct Taps {
    int64_t first, count;
    float numbers[4];
  };
  const auto taps_of = [&](int64_t place) -> Taps {
    if (down) return {2 * place - 1, 4, {0.125f, 0.375f, 0.375f, 0.125f}};
    if (place % 2 == 0) return {place / 2 - 1, 2, {0.25f, 0.75f, 0.0f, 0.0f}};
    return {place / 2, 2, {0.75f, 0.25f, 0.0f, 0.0f}};
  };
  const Taps rows = taps_of(y);
  for (int64_t x = 0; x < i.width; ++x, to += i.channels) {
    const Taps columns = taps_of(x);
    for (int64_t c = 0; c < i.channels; c += 16) {
      const int64_t count = i.channels - c;
      f32x16 sum = {};
      for (int64_t a = 0; a < rows.count; ++a)
        for (int64_t b = 0; b < columns.count; ++b) {
          const int64_t row = rows.first + a, column = columns.first + b;
          if (row < 0 || row >= i.height_in || column < 0 || column >= i.width_in) continue;
          f32x16 v = load_some(source + (row * i.width_in + column) * i.channels + c, count);
          if (factors != nullptr)
            v = multiply_add(v, load_some(factors + c, count), load_some(factors + i.channels + c, count));
          if (i.act) v = silu_v(v);
          sum = multiply_add(splat(rows.numbers[a] * columns.numbers[b]), v, sum);
        }
      store_some(to + c, sum, count);
    }
  }
}

// A row of the mean of 2x2 pixels, or of each pixel twice, behind norm and activation. One source [H, W, C].
static void resample_row(const Work& w, int64_t unit, bool down) {
  const Instruction& i = w.i;
  if (i.kernel == 4) return filter_row(w, unit, down);
  const int64_t sample = unit / i.height, y = unit % i.height;
  float* to = at(w, i.target, sample, i.height * i.width * i.channels) + y * i.width * i.channels;
  for (int64_t x = 0; x < i.width; ++x, to += i.channels) {
    if (!down) {
      read_pixel(w, sample, y / 2, x / 2, to);
      continue;
    }
    for (int64_t c = 0; c < i.channels; ++c) to[c] = 0.0f;
    for (int64_t k = 0; k < 4; ++k) {
      const float* from = at(w, i.source, sample, i.height_in * i.width_in * i.channels) +
                          ((2 * y + k / 2) * i.width_in + 2 * x + k % 2) * i.channels;
      const float* factors = i.norm >= 0 ? at(w, i.norm, sample, 2 * i.channels) : nullptr;
      for (int64_t c = 0; c < i.channels; c += 16) {
        const int64_t count = i.channels - c;
        f32x16 v = load_some(from + c, count);
        if (factors != nullptr)
          v = multiply_add(v, load_some(factors + c, count), load_some(factors + i.channels + c, count));
        if (i.act) v = silu_v(v);
        store_some(to + c, multiply_add(splat(0.25f), v, load_some(to + c, count)), count);
      }
    }
  }
}

// scratch: [thread_scratch(...)].
void run_instruction_unit(const Work& w, int64_t threads, int64_t unit, float* scratch) {
  const Instruction& i = w.i;
  switch (i.op) {
    case PLAN_STATS: return channel_stats(w, unit);
    case PLAN_NORM: return norm_factors(w, unit);
    case PLAN_POOL: return resample_row(w, unit, true);
    case PLAN_REPEAT: return resample_row(w, unit, false);
    case PLAN_ATTENTION: return w.phase == 0 ? attention_keys(w, unit) : attention_queries<Floats>(w, unit, scratch);
    case PLAN_PIXEL_NORM: return pixel_norm_row(w, unit, scratch);
    case PLAN_MEMORY_ATTENTION: return w.phase == 0 ? memory_keys(w, unit) : memory_queries(w, unit, scratch);
    case PLAN_LINEAR_ATTENTION:
      return w.phase == 0 ? linear_context(w, unit, scratch) : linear_queries(w, unit, scratch);
    default: break;
  }
  convolution<Floats>(w, threads, unit, scratch);
}

}  // namespace fastdiff::FD_VARIANT
