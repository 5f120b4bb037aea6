// The plan's norms of each pixel over its channels, and what a group norm makes of a pixel where no convolution reads
// it.
#pragma once

#include <cstdint>

#include "images_impl.h"
#include "instructions.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// A row of act(factor * x + offset) + residual. Source, target and residual: [H, W, C]; factors and offsets: [2, C].
static void factored_row(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t sample = unit / i.height, channels = i.channels, size = i.height * i.width * channels;
  const int64_t start = unit % i.height * i.width * channels;
  const float* from = at(w, i.source, sample, size) + start;
  const float* factors = at(w, i.norm, sample, 2 * channels);
  const float* residual = i.residual < 0 ? nullptr : at(w, i.residual, sample, size) + start;
  float* to = at(w, i.target, sample, size) + start;
  for (int64_t x = 0; x < i.width; ++x, from += channels, to += channels) {
    for (int64_t c = 0; c < channels; c += 16) {
      const int64_t count = channels - c;
      f32x16 v = multiply_add(load_some(from + c, count), load_some(factors + c, count),
                              load_some(factors + channels + c, count));
      if (i.act) v = silu_v(v);
      if (residual != nullptr) v += load_some(residual + c, count);
      store_some(to + c, v, count);
    }
    if (residual != nullptr) residual += channels;
  }
}

// A row of act((x - mean) / sqrt(variance + epsilon) * gain + offset) + residual, over the channels of a pixel. Source,
// target and residual: [H, W, C]; gain and offset: [C].
static void layer_norm_row(const Work& w, int64_t unit) {
  static const float ONES[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const Instruction& i = w.i;
  const int64_t sample = unit / i.height, channels = i.channels, size = i.height * i.width * channels;
  const int64_t start = unit % i.height * i.width * channels;
  const float* from = at(w, i.source, sample, size) + start;
  const float *gain = w.weights + i.weight, *offset = w.weights + i.bias, epsilon = w.weights[i.epsilon];
  const float* residual = i.residual < 0 ? nullptr : at(w, i.residual, sample, size) + start;
  float* to = at(w, i.target, sample, size) + start;
  for (int64_t x = 0; x < i.width; ++x, from += channels, to += channels) {
    f32x16 sums = {}, squares = {};
    for (int64_t c = 0; c < channels; c += 16) sums += load_some(from + c, channels - c);
    const float mean = sum_of<1>({sums}) / (float)channels;
    for (int64_t c = 0; c < channels; c += 16) {
      // Nothing of the lanes behind the last channel.
      const f32x16 d = (load_some(from + c, channels - c) - mean) * load_some(ONES, channels - c);
      squares += d * d;
    }
    const float inverse = 1.0f / __builtin_sqrtf(sum_of<1>({squares}) / (float)channels + epsilon);
    for (int64_t c = 0; c < channels; c += 16) {
      const int64_t count = channels - c;
      const f32x16 normal = (load_some(from + c, count) - mean) * inverse;
      f32x16 v = multiply_add(normal, load_some(gain + c, count), load_some(offset + c, count));
      if (i.act) v = silu_v(v);
      if (residual != nullptr) v += load_some(residual + c, count);
      store_some(to + c, v, count);
    }
    if (residual != nullptr) residual += channels;
  }
}

// A row of act(x / |x| * gain * (1 + scale) + shift) + residual, |x| over the channels of a pixel. Source, target and
// residual: [H, W, C]; gain: [C]; scale and shift: [2, C] of the time, or none; factors: room for [C].
static void pixel_norm_row(const Work& w, int64_t unit, float* factors) {
  const Instruction& i = w.i;
  if (i.memory == PIXEL_NORM_FACTORS) return factored_row(w, unit);
  if (i.memory == PIXEL_NORM_LAYER) return layer_norm_row(w, unit);
  const int64_t sample = unit / i.height, channels = i.channels, size = i.height * i.width * channels;
  const int64_t start = unit % i.height * i.width * channels;
  const float* from = at(w, i.source, sample, size) + start;
  const float* residual = i.residual < 0 ? nullptr : at(w, i.residual, sample, size) + start;
  float* to = at(w, i.target, sample, size) + start;
  const float *gain = w.weights + i.weight, *time = i.time < 0 ? nullptr : time_of(w, sample);
  for (int64_t c = 0; c < channels; ++c) factors[c] = time == nullptr ? gain[c] : gain[c] * (1.0f + time[c]);
  for (int64_t x = 0; x < i.width; ++x, from += channels, to += channels) {
    f32x16 sums = {};
    for (int64_t c = 0; c < channels; c += 16) {
      const f32x16 v = load_some(from + c, channels - c);
      sums += v * v;
    }
    const float length = __builtin_sqrtf(sum_of<1>({sums})), inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);
    for (int64_t c = 0; c < channels; c += 16) {
      const int64_t count = channels - c;
      f32x16 v = load_some(from + c, count) * inverse * load_some(factors + c, count);
      if (time != nullptr) v += load_some(time + channels + c, count);
      if (i.act) v = silu_v(v);
      if (residual != nullptr) v += load_some(residual + c, count);
      store_some(to + c, v, count);
    }
    if (residual != nullptr) residual += channels;
  }
}

}  // namespace fastdiff::FD_VARIANT
