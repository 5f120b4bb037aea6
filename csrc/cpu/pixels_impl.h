// Images in a network's training: activations, sums, resampling, and the pixels under a kernel. A unit is a row of the
// result.
#pragma once

#include <cstdint>

#include "pixels.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// f of neighbouring values, 16 at a time. f(place, count)
template <typename F>
FD_INLINE void each_vector(int64_t length, const F& f) {
  int64_t k = 0;
  for (; k + 16 <= length; k += 16) f(k, 16);
  if (k < length) f(k, length - k);
}

FD_INLINE f32x16 load_up_to(const float* from, int64_t count) {
  return count >= 16 ? load16(from) : load_some(from, count);
}
FD_INLINE void store_up_to(float* to, f32x16 v, int64_t count) {
  count >= 16 ? store16(to, v) : store_some(to, v, count);
}

// Values that lie alike in x, x2 and y.
static void pixels_alike(const PixelArgs& a, int64_t unit) {
  const int64_t length = a.width * a.channels, first = unit * length;
  each_vector(length, [&](int64_t k, int64_t count) __attribute__((always_inline)) {
    const f32x16 x = load_up_to(a.x + first + k, count);
    f32x16 y = x;
    if (a.op == PIXELS_SILU) {
      y = silu_v(x);
    } else {
      const f32x16 beside = load_up_to(a.x2 + first + k, count);
      if (a.op == PIXELS_ADD) {
        y = x + beside;
      } else {
        const f32x16 sigmoid = sigmoid_v(x);
        y = beside * (sigmoid * (1.0f + x * (1.0f - sigmoid)));
      }
    }
    store_up_to(a.y + first + k, y, count);
  });
}

static void pixels_resample(const PixelArgs& a, int64_t unit) {
  const int64_t sample = unit / a.height, row = unit % a.height, channels = a.channels;
  const float* image = a.x + sample * a.height_in * a.width_in * channels;
  float* to = a.y + unit * a.width * channels;
  const float* added = a.added == nullptr ? nullptr : a.added + unit * a.width * channels;
  for (int64_t column = 0; column < a.width; ++column)
    each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      f32x16 sum;
      if (a.op == PIXELS_POOL) {
        const float* from = image + (2 * row * a.width_in + 2 * column) * channels + c;
        const float* below = from + a.width_in * channels;
        sum = (load_up_to(from, count) + load_up_to(from + channels, count)) +
              (load_up_to(below, count) + load_up_to(below + channels, count));
      } else {
        sum = load_up_to(image + (row / 2 * a.width_in + column / 2) * channels + c, count);
      }
      sum *= a.factor;
      if (added != nullptr) sum += load_up_to(added + column * channels + c, count);
      store_up_to(to + column * channels + c, sum, count);
    });
}

static void pixels_unfold(const PixelArgs& a, int64_t unit) {
  const int64_t sample = unit / a.height, row = unit % a.height, channels = a.channels;
  const float* image = a.x + sample * a.height_in * a.width_in * channels;
  float* to = a.y + unit * a.width * 9 * channels;
  for (int64_t column = 0; column < a.width; ++column, to += 9 * channels)
    for (int64_t k = 0; k < 9; ++k) {
      const int64_t y = row * a.stride + k / 3 - a.pad, x = column * a.stride + k % 3 - a.pad;
      const bool inside = 0 <= y && y < a.height_in && 0 <= x && x < a.width_in;
      const float* from = image + (y * a.width_in + x) * channels;
      if (a.turned) {
        for (int64_t c = 0; c < channels; ++c) to[c * 9 + 8 - k] = inside ? from[c] : 0.0f;
      } else {
        each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
          store_up_to(to + k * channels + c, inside ? load_up_to(from + c, count) : (f32x16){}, count);
        });
      }
    }
}

static void pixels_fold(const PixelArgs& a, int64_t unit) {
  const int64_t sample = unit / a.height, row = unit % a.height, channels = a.channels;
  const float* columns = a.x + sample * a.height_in * a.width_in * 9 * channels;
  float* to = a.y + unit * a.width * channels;
  for (int64_t column = 0; column < a.width; ++column, to += channels) {
    const float* from[9];
    for (int64_t k = 0; k < 9; ++k) {
      const int64_t y = row + a.pad - k / 3, x = column + a.pad - k % 3;
      const bool inside = y >= 0 && y % a.stride == 0 && y / a.stride < a.height_in && x >= 0 && x % a.stride == 0 &&
                          x / a.stride < a.width_in;
      from[k] = inside ? columns + (y / a.stride * a.width_in + x / a.stride) * 9 * channels : nullptr;
    }
    if (a.turned) {
      for (int64_t c = 0; c < channels; ++c) {
        float sum = 0.0f;
        for (int64_t k = 0; k < 9; ++k) sum += from[k] == nullptr ? 0.0f : from[k][c * 9 + 8 - k];
        to[c] = sum + (a.bias == nullptr ? 0.0f : a.bias[c]);
      }
      continue;
    }
    const float* added = a.added == nullptr ? nullptr : a.added + (unit * a.width + column) * channels;
    each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      f32x16 sum = {};
      for (int64_t k = 0; k < 9; ++k)
        if (from[k] != nullptr) sum += load_up_to(from[k] + k * channels + c, count);
      if (added != nullptr) sum += load_up_to(added + c, count);
      store_up_to(to + c, sum, count);
    });
  }
}

void run_pixels(const PixelArgs& a, int64_t first_unit, int64_t last_unit) {
  for (int64_t unit = first_unit; unit < last_unit; ++unit) switch (a.op) {
      case PIXELS_POOL:
      case PIXELS_REPEAT: pixels_resample(a, unit); break;
      case PIXELS_UNFOLD: pixels_unfold(a, unit); break;
      case PIXELS_FOLD: pixels_fold(a, unit); break;
      default: pixels_alike(a, unit); break;
    }
}

}  // namespace fastdiff::FD_VARIANT
