// Group norm, scale and shift, SiLU, and their gradient. A unit is some whole groups of one sample; it goes over them
// twice, tile by tile. The reference of the op has the formulas.
#pragma once

#include <cstdint>

#include "group_norm_act.h"
#include "group_norm_act_tiles_impl.h"
#include "rounding.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Sums over a strip, to each channel's place: [16 * U], or [1] of one channel.
template <bool PLANAR, int U>
FD_INLINE void add_sums(float* to, const f32x16 (&sums)[U]) {
  if (PLANAR) {
    *to += sum_of(sums);
    return;
  }
  for (int j = 0; j < U; ++j) store16(to + 16 * j, load16(to + 16 * j) + sums[j]);
}

// Of each channel, as `merge_moments` keeps them: [u.width] each.
struct Moments {
  float *pivot, *mean, *squares;
};

// Those of a tile join those of the unit.
template <bool PLANAR>
FD_INLINE void add_moments(const NormUnit& u, const NormTile& t, const Rows& h, const Moments& m) {
  const int64_t before = PLANAR ? t.col : t.row;
  if (before == 0) {
    // A mean over the first few.
    if (PLANAR) {
      const int64_t num_pivot = t.cols < 64 ? t.cols : 64;
      float sum = 0;
      for (int64_t c = 0; c < num_pivot; ++c) sum += h.at[c];
      m.pivot[t.row - u.first] = sum / (float)num_pivot;
    } else {
      const int64_t num_pivot = t.rows < 4 ? t.rows : 4;
      for (int64_t c = 0; c < round_up(t.cols, 16); c += 16) {
        f32x16 sum = {};
        for (int64_t r = 0; r < num_pivot; ++r) sum += load16(h.at + r * h.stride + c);
        store16(m.pivot + c, sum / (float)num_pivot);
      }
    }
  }
  float plane_sum = 0, plane_products = 0;
  const auto strip = [&]<int U>(int64_t place, int64_t count, int64_t first) __attribute__((always_inline)) {
    f32x16 from[U], sum[U] = {}, products[U] = {};
    for (int j = 0; j < U; ++j)
      from[j] = PLANAR ? splat(m.pivot[first] + m.mean[first])
                       : load16(m.pivot + first + 16 * j) + load16(m.mean + first + 16 * j);
    const int64_t step = step_of<PLANAR, U>(h);
    const float* at = h.at + place;
    for (int64_t k = 0; k < count; ++k, at += step)
      for (int j = 0; j < U; ++j) {
        f32x16 d = load16(at + 16 * j) - from[j];
        if (U == 1) d = zero_behind_end<PLANAR>(d, place + k * 16, t);
        sum[j] += d;
        products[j] += d * d;
      }
    if (PLANAR) {
      plane_sum += sum_of(sum);
      plane_products += sum_of(products);
      return;
    }
    for (int j = 0; j < U; ++j) {
      const int64_t c = first + 16 * j;
      f32x16 mean = load16(m.mean + c), squares = load16(m.squares + c);
      merge_moments(sum[j], products[j], (float)t.rows, (float)before, from[j], load16(m.pivot + c), mean, squares);
      store16(m.mean + c, mean);
      store16(m.squares + c, squares);
    }
  };
  each_strip<PLANAR>(u, t, strip);
  if (PLANAR) {
    const int64_t c = t.row - u.first;
    merge_moments(plane_sum, plane_products, (float)t.cols, (float)before, m.pivot[c] + m.mean[c], m.pivot[c],
                  m.mean[c], m.squares[c]);
  }
}

// Per channel, u = (h - mean) * factor + offset, where h lacks what is added to the channel unless `complete`.
// mean, factor, offset: [u.width].
FD_INLINE void norm_coefficients(const NormArgs& a, const NormUnit& u, bool complete, float* mean, float* factor,
                                 float* offset) {
  const int64_t size = a.channels / a.groups;
  int64_t group = u.sample * a.groups + u.first / size;
  for (int64_t first = 0; first < u.channels; first += size, ++group)
    for (int64_t c = first; c < first + size; ++c) {
      const int64_t channel = u.first + c;
      const float scale = a.scale == nullptr ? 1.0f : 1.0f + a.scale[u.sample * a.scale_stride + channel];
      mean[c] = a.mean[group] - (complete ? 0.0f : added_to(a, u.sample, channel));
      factor[c] = a.rstd[group] * a.weight[channel] * scale;
      offset[c] = a.bias[channel] * scale + (a.shift == nullptr ? 0.0f : a.shift[u.sample * a.scale_stride + channel]);
    }
}

// Mean and rstd of the unit's groups from the moments of their channels. mean_rounding: [u.width], what the rounding of
// the mean took away, for each channel.
FD_INLINE void group_moments(const NormArgs& a, const NormUnit& u, bool complete, const Moments& m,
                             float* mean_rounding) {
  const int64_t size = a.channels / a.groups;
  int64_t group = u.sample * a.groups + u.first / size;
  for (int64_t first = 0; first < u.channels; first += size, ++group) {
    const auto mean_of = [&](int64_t k) __attribute__((always_inline)) {
      return (double)m.pivot[k] + m.mean[k] + (complete ? 0.0 : (double)added_to(a, u.sample, u.first + k));
    };
    double total = 0, within = 0, between = 0;
    for (int64_t k = first; k < first + size; ++k) total += mean_of(k);
    const double mean = total / (double)size;
    for (int64_t k = first; k < first + size; ++k) {
      const double difference = mean_of(k) - mean;
      within += m.squares[k];
      between += difference * difference;
    }
    a.mean[group] = (float)mean;
    a.rstd[group] = (float)(1 / __builtin_sqrt((within / (double)a.pixels + between) / (double)size + a.eps));
    for (int64_t k = first; k < first + size; ++k) mean_rounding[k] = (float)(mean - (double)a.mean[group]);
  }
}

// y of a tile. mean, factor, offset: [u.width].
template <bool PLANAR, bool ACT>
FD_INLINE void apply_tile(const NormUnit& u, const NormTile& t, const Rows& h, const Rows& y, const float* mean,
                          const float* factor, const float* offset) {
  const auto strip = [&]<int U>(int64_t place, int64_t count, int64_t first) __attribute__((always_inline)) {
    f32x16 less[U], by[U], plus[U];
    coefficients_of<PLANAR, U>(mean + first, less);
    coefficients_of<PLANAR, U>(factor + first, by);
    coefficients_of<PLANAR, U>(offset + first, plus);
    const float* from = h.at + place;
    float* to = y.at + place;
    for (int64_t k = 0; k < count; ++k, from += step_of<PLANAR, U>(h), to += step_of<PLANAR, U>(y))
      for (int j = 0; j < U; ++j) {
        const f32x16 v = (load16(from + 16 * j) - less[j]) * by[j] + plus[j];
        store16(to + 16 * j, ACT ? silu_v(v) : v);
      }
  };
  each_strip<PLANAR>(u, t, strip);
}

// Moments of every channel of a unit. h_buffer, second_buffer: [norm_tile(a)].
template <bool PLANAR>
FD_INLINE void moments_of(const NormArgs& a, const NormUnit& u, float* h_buffer, float* second_buffer,
                          const Moments& m) {
  const NormTiles tiles = norm_tiles<PLANAR>(a, u);
  for (int64_t k = 0; k < tiles.total; ++k) {
    const NormTile t = norm_tile_of<PLANAR>(a, u, tiles, k);
    add_moments<PLANAR>(u, t, load_h<PLANAR>(a, u, t, false, h_buffer, second_buffer), m);
  }
}

// scratch: NORM_TILES tiles, NORM_VECTORS vectors [u.width].
template <bool PLANAR>
static void norm_forward_of(const NormArgs& a, int64_t unit, float* scratch) {
  const NormUnit u = norm_unit(a, unit);
  const NormTiles tiles = norm_tiles<PLANAR>(a, u);
  const int64_t size = a.channels / a.groups;
  float *h_buffer = scratch, *second_buffer = h_buffer + norm_tile(a), *vectors = second_buffer + 3 * norm_tile(a);
  float *mean = vectors, *factor = mean + u.width, *offset = factor + u.width, *mean_rounding = offset + u.width;
  const Moments m = {mean_rounding + u.width, mean_rounding + 2 * u.width, mean_rounding + 3 * u.width};
  for (int64_t k = 0; k < NORM_VECTORS * u.width; ++k) vectors[k] = 0.0f;
  const bool has_total = a.residual.data != nullptr;
  if (PLANAR && !has_total && a.x2.data == nullptr && a.added_bias == nullptr && a.added_time == nullptr) {
    // A group is one stretch of memory: as good as one channel of more pixels.
    NormArgs merged = a;
    merged.channels = merged.channels1 = a.groups;
    merged.pixels = a.pixels * size;
    merged.x.row_stride = merged.pixels;
    const NormUnit groups = {u.sample, u.first / size, u.channels / size, u.width};
    moments_of<PLANAR>(merged, groups, h_buffer, second_buffer, m);
    group_moments(merged, groups, false, m, mean_rounding);
    for (int64_t g = groups.channels; g-- > 0;)
      for (int64_t k = g * size; k < (g + 1) * size; ++k) mean_rounding[k] = mean_rounding[g];
  } else {
    moments_of<PLANAR>(a, u, h_buffer, second_buffer, m);
    group_moments(a, u, has_total, m, mean_rounding);
  }
  norm_coefficients(a, u, has_total, mean, factor, offset);
  // What the rounding of the mean took away.
  for (int64_t c = 0; c < u.channels; ++c) offset[c] -= mean_rounding[c] * factor[c];
  // The last tiles first: they are still in the cache.
  for (int64_t k = tiles.total; k-- > 0;) {
    const NormTile t = norm_tile_of<PLANAR>(a, u, tiles, k);
    const Rows h = load_h<PLANAR>(a, u, t, has_total, h_buffer, second_buffer),
               y = result_rows(a.y, u.sample, t, second_buffer);
    a.act ? apply_tile<PLANAR, true>(u, t, h, y, mean, factor, offset)
          : apply_tile<PLANAR, false>(u, t, h, y, mean, factor, offset);
    finish_rows(a.y, u.sample, t, y);
  }
}

// scratch: [norm_scratch(a)].
void run_group_norm_act(const NormArgs& a, int64_t unit, float* scratch) {
  a.planar ? norm_forward_of<true>(a, unit, scratch) : norm_forward_of<false>(a, unit, scratch);
}

// d silu(u) / du
FD_INLINE f32x16 silu_slope(f32x16 u) {
  const f32x16 sigmoid = sigmoid_v(u);
  return sigmoid * (1.0f + u * (1.0f - sigmoid));
}

// dx or dx2 of a tile, in place or by way of the buffer.
template <bool PLANAR>
FD_INLINE Rows gradient_rows(const NormGradArgs& grad, const NormUnit& u, const NormTile& t, float* buffer) {
  const NormArgs& a = grad.forward;
  const int64_t head = num_from_x<PLANAR>(a, t), count = PLANAR ? t.rows : t.cols;
  if (head == count) return result_rows(grad.dx, u.sample, t, buffer);
  if (head == 0) return result_rows(grad.dx2, u.sample, tile_in_x2<PLANAR>(a, t), buffer);
  return {buffer, round_up(t.cols, 16)};
}

// Write them unless they were made in place.
template <bool PLANAR>
FD_INLINE void finish_gradient(const NormGradArgs& grad, const NormUnit& u, const NormTile& t, const Rows& from) {
  const NormArgs& a = grad.forward;
  const int64_t head = num_from_x<PLANAR>(a, t), count = PLANAR ? t.rows : t.cols;
  if (head == count) return finish_rows(grad.dx, u.sample, t, from);
  if (head == 0) return finish_rows(grad.dx2, u.sample, tile_in_x2<PLANAR>(a, t), from);
  store_rows(grad.dx, u.sample, t, t.col, head, from.at);
  store_rows(grad.dx2, u.sample, t, 0, count - head, from.at + head);
}

// Of a strip: mean, factor and offset of `norm_coefficients`, and with them du and h less the group's mean.
template <bool PLANAR, bool ACT, int U>
struct NormSlopes {
  f32x16 mean[U], factor[U], offset[U];
  inline __attribute__((always_inline)) f32x16 du(int j, f32x16 about, f32x16 dy) const {
    return ACT ? dy * silu_slope(about * factor[j] + offset[j]) : dy;
  }
};

// scratch: NORM_TILES tiles, NORM_VECTORS vectors [u.width].
template <bool PLANAR, bool ACT>
static void norm_backward_of(const NormGradArgs& grad, int64_t unit, float* scratch) {
  const NormArgs& a = grad.forward;
  const NormUnit u = norm_unit(a, unit);
  const NormTiles tiles = norm_tiles<PLANAR>(a, u);
  const int64_t size = a.channels / a.groups;
  float *h_buffer = scratch, *dy_buffer = h_buffer + norm_tile(a), *second_buffer = dy_buffer + norm_tile(a);
  float *third_buffer = second_buffer + norm_tile(a), *vectors = third_buffer + norm_tile(a), *mean = vectors,
        *factor = mean + u.width, *offset = factor + u.width;
  float *du_sum = offset + u.width, *du_h_sum = du_sum + u.width, *constant = du_h_sum + u.width;
  float *slope = constant + u.width, *total = slope + u.width;
  for (int64_t k = 0; k < NORM_VECTORS * u.width; ++k) vectors[k] = 0.0f;
  norm_coefficients(a, u, false, mean, factor, offset);
  const auto slopes = [&]<int U>(int64_t first) __attribute__((always_inline)) {
    NormSlopes<PLANAR, ACT, U> s;
    coefficients_of<PLANAR, U>(mean + first, s.mean);
    coefficients_of<PLANAR, U>(factor + first, s.factor);
    coefficients_of<PLANAR, U>(offset + first, s.offset);
    return s;
  };
  for (int64_t k = 0; k < tiles.total; ++k) {
    const NormTile t = norm_tile_of<PLANAR>(a, u, tiles, k);
    const Rows h = load_h<PLANAR>(a, u, t, false, h_buffer, second_buffer),
               dy = rows_of(grad.dy, u.sample, t, dy_buffer);
    const auto strip = [&]<int U>(int64_t place, int64_t count, int64_t first) __attribute__((always_inline)) {
      const NormSlopes<PLANAR, ACT, U> s = slopes.template operator()<U>(first);
      f32x16 sum[U] = {}, products[U] = {};
      const float *at = h.at + place, *at_dy = dy.at + place;
      for (int64_t i = 0; i < count; ++i, at += step_of<PLANAR, U>(h), at_dy += step_of<PLANAR, U>(dy))
        for (int j = 0; j < U; ++j) {
          const f32x16 about = load16(at + 16 * j) - s.mean[j];
          f32x16 du = s.du(j, about, load16(at_dy + 16 * j)), product = du * about;
          if (U == 1)
            du = zero_behind_end<PLANAR>(du, place + 16 * i, t),
            product = zero_behind_end<PLANAR>(product, place + 16 * i, t);
          sum[j] += du;
          products[j] += product;
        }
      add_sums<PLANAR, U>(du_sum + first, sum);
      add_sums<PLANAR, U>(du_h_sum + first, products);
    };
    each_strip<PLANAR>(u, t, strip);
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
  for (int64_t k = tiles.total; k-- > 0;) {
    const NormTile t = norm_tile_of<PLANAR>(a, u, tiles, k);
    const Rows h = load_h<PLANAR>(a, u, t, false, h_buffer, second_buffer),
               dy = rows_of(grad.dy, u.sample, t, dy_buffer);
    const bool has_total = grad.dtotal.data != nullptr;
    const Rows dtotal = has_total ? rows_of(grad.dtotal, u.sample, t, second_buffer) : Rows{};
    const bool has_more = grad.dmore.data != nullptr;
    const Rows dmore = has_more ? rows_of(grad.dmore, u.sample, t, third_buffer) : Rows{};
    // A result may take the place of what was read for it, vector by vector.
    const Rows dx = gradient_rows<PLANAR>(grad, u, t, dy_buffer);
    const auto strip = [&]<int U>(int64_t place, int64_t count, int64_t first) __attribute__((always_inline)) {
      const NormSlopes<PLANAR, ACT, U> s = slopes.template operator()<U>(first);
      f32x16 less[U], by[U], sum[U] = {};
      coefficients_of<PLANAR, U>(constant + first, less);
      coefficients_of<PLANAR, U>(slope + first, by);
      for (int64_t i = 0; i < count; ++i)
        for (int j = 0; j < U; ++j) {
          const int64_t along = place + 16 * j;
          const f32x16 about = load16(h.at + i * step_of<PLANAR, U>(h) + along) - s.mean[j];
          const f32x16 du = s.du(j, about, load16(dy.at + i * step_of<PLANAR, U>(dy) + along));
          f32x16 dh = du * s.factor[j] - less[j] - about * by[j];
          if (has_total) dh += load16(dtotal.at + i * step_of<PLANAR, U>(dtotal) + along);
          if (has_more) dh += load16(dmore.at + i * step_of<PLANAR, U>(dmore) + along);
          store16(dx.at + i * step_of<PLANAR, U>(dx) + along, dh);
          sum[j] += U == 1 ? zero_behind_end<PLANAR>(dh, place + 16 * i, t) : dh;
        }
      add_sums<PLANAR, U>(total + first, sum);
    };
    each_strip<PLANAR>(u, t, strip);
    finish_gradient<PLANAR>(grad, u, t, dx);
  }
  if (grad.dh_sum != nullptr)
    for (int64_t k = 0; k < u.channels; ++k) grad.dh_sum[u.sample * a.channels + u.first + k] = total[k];
}

// scratch: [norm_scratch(grad.forward)].
void run_group_norm_act_backward(const NormGradArgs& grad, int64_t unit, float* scratch) {
  if (grad.forward.planar)
    grad.forward.act ? norm_backward_of<true, true>(grad, unit, scratch)
                     : norm_backward_of<true, false>(grad, unit, scratch);
  else
    grad.forward.act ? norm_backward_of<false, true>(grad, unit, scratch)
                     : norm_backward_of<false, false>(grad, unit, scratch);
}

}  // namespace fastdiff::FD_VARIANT
