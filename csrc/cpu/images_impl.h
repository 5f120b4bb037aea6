// What an instruction reads and writes: images [H, W, C], vectors along C.
#pragma once

#include <cstdint>

#include "instructions.h"
#include "plan_layout.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// A sample's image of `size` floats in the arena.
FD_INLINE float* at(const Work& w, int64_t place, int64_t sample, int64_t size) {
  return w.arena + place + sample * size;
}

// [C], or [2, C] of a norm: what a sample's time adds, or its scale and shift.
FD_INLINE const float* time_of(const Work& w, int64_t sample) { return w.times + w.i.time + sample * w.times_stride; }

// act(factor * x + offset) of one pixel. from, factors, offsets, to: [channels].
template <bool NORM, bool ACT>
FD_INLINE void read_channels(const float* from, const float* factors, const float* offsets, int64_t channels,
                             float* to) {
  int64_t c = 0;
  for (; c + 16 <= channels; c += 16) {
    f32x16 v = load16(from + c);
    if (NORM) v = v * load16(factors + c) + load16(offsets + c);
    if (ACT) v = silu_v(v);
    store16(to + c, v);
  }
  if (c < channels) {
    const int64_t count = channels - c;
    f32x16 v = load_some(from + c, count);
    if (NORM) v = multiply_add(v, load_some(factors + c, count), load_some(offsets + c, count));
    if (ACT) v = silu_v(v);
    store_some(to + c, v, count);
  }
}

// What a convolution reads of one pixel: both sources, normalised and activated. to: [channels + channels2].
FD_INLINE void read_pixel(const Work& w, int64_t sample, int64_t y, int64_t x, float* to) {
  const Instruction& i = w.i;
  const int64_t pixels = i.height_in * i.width_in, total = i.channels + i.channels2;
  const float* factors = i.norm >= 0 ? at(w, i.norm, sample, 2 * total) : nullptr;
  const int64_t places[2] = {i.source, i.source2}, counts[2] = {i.channels, i.channels2};
  for (int part = 0; part < 2 && places[part] >= 0; ++part) {
    const float* from = at(w, places[part], sample, pixels * counts[part]) + (y * i.width_in + x) * counts[part];
    if (factors == nullptr)
      i.act ? read_channels<false, true>(from, nullptr, nullptr, counts[part], to)
            : read_channels<false, false>(from, nullptr, nullptr, counts[part], to);
    else
      i.act ? read_channels<true, true>(from, factors, factors + total, counts[part], to)
            : read_channels<true, false>(from, factors, factors + total, counts[part], to);
    to += counts[part];
    if (factors != nullptr) factors += counts[part];
  }
}

// Row y of the padded input: pixels [-pad, width - pad) of row y, zero outside of the image. to: [width, C].
FD_INLINE void read_row(const Work& w, int64_t sample, int64_t y, int64_t width, float* to) {
  const Instruction& i = w.i;
  const int64_t channels = i.channels + i.channels2, scale = i.upsample ? 2 : 1;
  const bool inside = y >= 0 && y < i.height_in * scale;
  for (int64_t p = 0; p < width; ++p, to += channels) {
    const int64_t x = p - i.pad;
    if (!inside || x < 0 || x >= i.width_in * scale)
      for (int64_t c = 0; c < channels; ++c) to[c] = 0.0f;
    else if (i.upsample && x % 2 == 1)
      for (int64_t c = 0; c < channels; ++c) to[c] = to[c - channels];
    else
      read_pixel(w, sample, y / scale, x / scale, to);
  }
}

// Where the results of one sample go, and what is added to them.
struct Writer {
  float* target;          // [H * W, C]
  const float* bias;      // [C]
  const float* time;      // [C] or nullptr
  const float* residual;  // [H * W, C] or nullptr
  int64_t channels;

  // Channels [c, c + 16) of a pixel, as far as there are so many.
  inline __attribute__((always_inline)) void write(int64_t pixel, int64_t c, f32x16 v) const {
    const int64_t place = pixel * channels + c, count = channels - c;
    if (count >= 16) {
      v += load16(bias + c);
      if (time != nullptr) v += load16(time + c);
      if (residual != nullptr) v += load16(residual + place);
      return store16(target + place, v);
    }
    v += load_some(bias + c, count);
    if (time != nullptr) v += load_some(time + c, count);
    if (residual != nullptr) v += load_some(residual + place, count);
    store_some(target + place, v, count);
  }
};

FD_INLINE Writer writer_of(const Work& w, int64_t sample) {
  const Instruction& i = w.i;
  const int64_t size = i.height * i.width * i.channels_out;
  return {at(w, i.target, sample, size), w.weights + i.bias, i.time < 0 ? nullptr : time_of(w, sample),
          i.residual < 0 ? nullptr : at(w, i.residual, sample, size), i.channels_out};
}

}  // namespace fastdiff::FD_VARIANT
