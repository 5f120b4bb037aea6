// Group norm, scale and shift, SiLU, and their gradient, on [B, pixels, C]; included after engine_impl.h. A unit is some
// whole groups of one sample; it reads them twice, by chunks of pixels that fit the first-level cache. fastdiff/
// reference_norm.py has the formulas.

struct NormUnit {
  int64_t sample, first, channels, width;  // width: channels rounded up to whole vectors
};

FD_INLINE NormUnit norm_unit(const NormArgs& a, int64_t unit) {
  const int64_t blocks = ceil_div(a.channels, a.block), first = unit % blocks * a.block;
  return {unit / blocks, first, first + a.block < a.channels ? a.block : a.channels - first, norm_width(a)};
}

// Channels [first, first + count) of some pixels of a dense [B, pixels, C] matrix, to or from rows of `width` floats.
FD_INLINE void load_pixels(const Matrix& m, int64_t sample, int64_t pixel, int64_t pixels, int64_t first, int64_t count,
                           float* to, int64_t width) {
  for (int64_t p = 0; p < pixels; ++p)
    load_run(to + p * width, m, sample * m.sample_stride + (pixel + p) * m.row_stride + first, count);
}

FD_INLINE void store_pixels(const Matrix& m, int64_t sample, int64_t pixel, int64_t pixels, int64_t first, int64_t count,
                            const float* from, int64_t width) {
  for (int64_t p = 0; p < pixels; ++p)
    store_run(from + p * width, m, sample * m.sample_stride + (pixel + p) * m.row_stride + first, count);
}

// The part of [first, first + count) that x holds; the rest is x2's.
FD_INLINE int64_t in_first(const NormArgs& a, const NormUnit& u) {
  const int64_t left = a.channels1 - u.first;
  return left < 0 ? 0 : left < u.channels ? left : u.channels;
}

// Rows of h. `written` says that the sum is in `total` already. What lies behind the last channel is whatever was there.
FD_INLINE void load_h(const NormArgs& a, const NormUnit& u, int64_t pixel, int64_t pixels, bool written, float* h,
                      float* other) {
  if (written) return load_pixels(a.total, u.sample, pixel, pixels, u.first, u.channels, h, u.width);
  const int64_t head = in_first(a, u);
  if (head > 0) load_pixels(a.x, u.sample, pixel, pixels, u.first, head, h, u.width);
  if (head < u.channels)
    load_pixels(a.x2, u.sample, pixel, pixels, u.first + head - a.channels1, u.channels - head, h + head, u.width);
  if (a.added != nullptr) {
    const float* added = a.added + u.sample * a.added_stride + u.first;
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < u.channels; ++c) h[p * u.width + c] += added[c];
  }
  if (a.residual.data != nullptr) {
    load_pixels(a.residual, u.sample, pixel, pixels, u.first, u.channels, other, u.width);
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < u.channels; ++c) h[p * u.width + c] += other[p * u.width + c];
    store_pixels(a.total, u.sample, pixel, pixels, u.first, u.channels, h, u.width);
    // As it was rounded.
    load_pixels(a.total, u.sample, pixel, pixels, u.first, u.channels, h, u.width);
  }
}

// Mean less `pivot` and sum of squares about the mean of each channel, over the pixels so far. The pivot is a value of the
// channel: where the mean is far from zero, float32 has no digits to lose. Chan, Golub, LeVeque (1983), eq. 2.1.
FD_INLINE void add_stats(const float* h, int64_t before, int64_t pixels, int64_t width, const float* pivot, float* mean,
                         float* squares) {
  for (int64_t c = 0; c < width; c += 16) {
    const f32x16 from = load16(pivot + c);
    f32x16 sum = {}, about = {};
    for (int64_t p = 0; p < pixels; ++p) sum += load16(h + p * width + c) - from;
    const f32x16 chunk_mean = sum / (float)pixels;
    for (int64_t p = 0; p < pixels; ++p) {
      const f32x16 d = load16(h + p * width + c) - from - chunk_mean;
      about += d * d;
    }
    const float share = (float)pixels / (float)(before + pixels);
    const f32x16 difference = chunk_mean - load16(mean + c);
    store16(squares + c, load16(squares + c) + about + difference * difference * ((float)before * share));
    store16(mean + c, load16(mean + c) + difference * share);
  }
}

// Per channel: its group's mean, and u = (h - mean) * factor + offset.
FD_INLINE void norm_coefficients(const NormArgs& a, const NormUnit& u, float* mean, float* factor, float* offset) {
  const int64_t size = a.channels / a.groups;
  for (int64_t c = 0; c < u.channels; ++c) {
    const int64_t channel = u.first + c, group = u.sample * a.groups + channel / size;
    const float scale = a.scale == nullptr ? 1.0f : 1.0f + a.scale[u.sample * a.channels + channel];
    mean[c] = a.mean[group];
    factor[c] = a.rstd[group] * a.weight[channel] * scale;
    offset[c] = a.bias[channel] * scale + (a.shift == nullptr ? 0.0f : a.shift[u.sample * a.channels + channel]);
  }
}

static void norm_forward(const NormArgs& a, int64_t unit, float* scratch) {
  const NormUnit u = norm_unit(a, unit);
  const int64_t chunk = norm_chunk(a), size = a.channels / a.groups;
  float *h = scratch, *other = h + chunk * u.width, *mean = other + chunk * u.width;
  float *squares = mean + u.width, *factor = squares + u.width, *offset = factor + u.width;
  float *pivot = offset + u.width, *rest = pivot + u.width;
  for (int64_t k = 0; k < (2 * chunk + 8) * u.width; ++k) scratch[k] = 0.0f;
  const bool has_total = a.residual.data != nullptr;
  for (int64_t p = 0; p < a.pixels; p += chunk) {
    const int64_t pixels = a.pixels - p < chunk ? a.pixels - p : chunk;
    load_h(a, u, p, pixels, false, h, other);
    if (p == 0)
      for (int64_t c = 0; c < u.width; ++c) pivot[c] = h[c];
    add_stats(h, p, pixels, u.width, pivot, mean, squares);
  }
  for (int64_t first = 0; first < u.channels; first += size) {
    double group_mean = 0, sum = 0;
    for (int64_t k = 0; k < size; ++k) {
      const double difference = (double)pivot[first + k] + mean[first + k] - group_mean;
      sum += squares[first + k] + difference * difference * (double)a.pixels * (double)k / (double)(k + 1);
      group_mean += difference / (double)(k + 1);
    }
    const int64_t group = u.sample * a.groups + (u.first + first) / size;
    a.mean[group] = (float)group_mean;
    a.rstd[group] = (float)(1 / __builtin_sqrt(sum / ((double)a.pixels * (double)size) + a.eps));
    for (int64_t k = 0; k < size; ++k) rest[first + k] = (float)(group_mean - (double)a.mean[group]);
  }
  norm_coefficients(a, u, mean, factor, offset);
  // What the rounding of the mean took away.
  for (int64_t c = 0; c < u.channels; ++c) offset[c] -= rest[c] * factor[c];
  for (int64_t p = 0; p < a.pixels; p += chunk) {
    const int64_t pixels = a.pixels - p < chunk ? a.pixels - p : chunk;
    load_h(a, u, p, pixels, has_total, h, other);
    for (int64_t k = 0; k < pixels; ++k)
      for (int64_t c = 0; c < u.width; c += 16) {
        float* at_h = h + k * u.width + c;
        const f32x16 v = (load16(at_h) - load16(mean + c)) * load16(factor + c) + load16(offset + c);
        store16(at_h, a.act ? silu_v(v) : v);
      }
    store_pixels(a.y, u.sample, p, pixels, u.first, u.channels, h, u.width);
  }
}

// d silu(u) / du
FD_INLINE f32x16 silu_slope(f32x16 u) {
  const f32x16 sigmoid = reciprocal(exp_v(-u) + 1.0f);
  return sigmoid * (1.0f + u * (1.0f - sigmoid));
}

static void norm_backward(const NormGradArgs& grad, int64_t unit, float* scratch) {
  const NormArgs& a = grad.forward;
  const NormUnit u = norm_unit(a, unit);
  const int64_t chunk = norm_chunk(a), size = a.channels / a.groups;
  float *h = scratch, *dy = h + chunk * u.width, *mean = dy + chunk * u.width;
  float *factor = mean + u.width, *offset = factor + u.width, *du_sum = offset + u.width;
  float *du_h_sum = du_sum + u.width, *constant = du_h_sum + u.width, *slope = constant + u.width, *total = slope + u.width;
  for (int64_t k = 0; k < (2 * chunk + 8) * u.width; ++k) scratch[k] = 0.0f;
  norm_coefficients(a, u, mean, factor, offset);
  // Rows of h less the group's mean, and of du.
  const auto load = [&](int64_t p, int64_t pixels) __attribute__((always_inline)) {
    load_h(a, u, p, pixels, false, h, dy);
    load_pixels(grad.dy, u.sample, p, pixels, u.first, u.channels, dy, u.width);
    for (int64_t k = 0; k < pixels; ++k)
      for (int64_t c = 0; c < u.width; c += 16) {
        float *at_h = h + k * u.width + c, *at_dy = dy + k * u.width + c;
        const f32x16 about = load16(at_h) - load16(mean + c);
        if (a.act) store16(at_dy, load16(at_dy) * silu_slope(about * load16(factor + c) + load16(offset + c)));
        store16(at_h, about);
      }
  };
  for (int64_t p = 0; p < a.pixels; p += chunk) {
    const int64_t pixels = a.pixels - p < chunk ? a.pixels - p : chunk;
    load(p, pixels);
    for (int64_t c = 0; c < u.width; c += 16) {
      f32x16 sum = {}, products = {};
      for (int64_t k = 0; k < pixels; ++k) {
        const f32x16 du = load16(dy + k * u.width + c);
        sum += du;
        products += du * load16(h + k * u.width + c);
      }
      store16(du_sum + c, load16(du_sum + c) + sum);
      store16(du_h_sum + c, load16(du_h_sum + c) + products);
    }
  }
  // dh = factor du - rstd mean_g(dxhat) - xhat rstd mean_g(dxhat xhat), with factor = rstd weight (1 + scale).
  for (int64_t first = 0; first < u.channels; first += size) {
    const double rstd = a.rstd[u.sample * a.groups + (u.first + first) / size], count = (double)a.pixels * (double)size;
    double sum = 0, products = 0;
    for (int64_t k = first; k < first + size; ++k) {
      sum += (double)factor[k] * du_sum[k];
      products += (double)factor[k] * du_h_sum[k];
    }
    for (int64_t k = first; k < first + size; ++k) {
      const int64_t place = u.sample * a.channels + u.first + k;
      grad.du_sum[place] = du_sum[k];
      grad.du_xhat_sum[place] = (float)(rstd * du_h_sum[k]);
      constant[k] = (float)(sum / count);
      slope[k] = (float)(products * rstd * rstd / count);
    }
  }
  const int64_t head = in_first(a, u);
  for (int64_t p = 0; p < a.pixels; p += chunk) {
    const int64_t pixels = a.pixels - p < chunk ? a.pixels - p : chunk;
    load(p, pixels);
    for (int64_t c = 0; c < u.width; c += 16) {
      const f32x16 gain = load16(factor + c), less = load16(constant + c), by = load16(slope + c);
      for (int64_t k = 0; k < pixels; ++k) {
        float* at_dy = dy + k * u.width + c;
        store16(at_dy, load16(at_dy) * gain - less - load16(h + k * u.width + c) * by);
      }
    }
    if (grad.dtotal.data != nullptr) {
      load_pixels(grad.dtotal, u.sample, p, pixels, u.first, u.channels, h, u.width);
      for (int64_t k = 0; k < pixels * u.width; ++k) dy[k] += h[k];
    }
    if (grad.dh_sum != nullptr)
      for (int64_t c = 0; c < u.width; c += 16) {
        f32x16 sum = load16(total + c);
        for (int64_t k = 0; k < pixels; ++k) sum += load16(dy + k * u.width + c);
        store16(total + c, sum);
      }
    if (head > 0) store_pixels(grad.dx, u.sample, p, pixels, u.first, head, dy, u.width);
    if (head < u.channels)
      store_pixels(grad.dx2, u.sample, p, pixels, u.first + head - a.channels1, u.channels - head, dy + head, u.width);
  }
  if (grad.dh_sum != nullptr)
    for (int64_t k = 0; k < u.channels; ++k) grad.dh_sum[u.sample * a.channels + u.first + k] = total[k];
}
