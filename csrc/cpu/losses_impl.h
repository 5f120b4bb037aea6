// The losses and the gradient of the network's output.
//
//   mu  = clamp(px x_t + pm m, -clip, clip),  logvar = v log_max + (1 - v) log_min, v = (second half + 1) / 2
//   t>0:  KL(N(coef1 x_0, exp(log_q)) || N(coef1 mu, exp(logvar)))
//   t=0:  -log P(bin of x_0) under N(mu, exp(logvar)), or -log of the density
//
// Each tensor is read once. Samples at t = 0 are computed in float64 whatever their type.
#pragma once

#include <cstdint>

#include "bound_terms_impl.h"
#include "convert_impl.h"
#include "losses.h"
#include "matrix.h"
#include "tiling.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// The next vector of a run. from: [left]; the lanes behind are 0.
template <typename A>
FD_INLINE typename Lanes<A>::Vector load_lanes(const A* from, int64_t left) {
  typedef Lanes<A> L;
  if (left >= L::COUNT) return *(const typename L::Unaligned*)from;
  alignas(64) A lanes[L::COUNT] = {};
  for (int64_t i = 0; i < left; ++i) lanes[i] = from[i];
  return *(const typename L::Vector*)lanes;
}

// to: [left].
template <typename A>
FD_INLINE void store_lanes(A* to, int64_t left, typename Lanes<A>::Vector v) {
  typedef Lanes<A> L;
  if (left >= L::COUNT)
    *(typename L::Unaligned*)to = v;
  else
    for (int64_t i = 0; i < left; ++i) to[i] = v[i];
}

// total += v, lane by lane; the lanes behind the `left` values that remain do not count.
template <typename A>
FD_INLINE void add_lanes(typename Lanes<A>::Vector& total, typename Lanes<A>::Vector v, int64_t left) {
  if (left >= Lanes<A>::COUNT)
    total += v;
  else
    for (int64_t i = 0; i < left; ++i) total[i] += v[i];
}

// Number i of `values`, float or double, in the type of the arithmetic.
template <typename A>
FD_INLINE A number_at(const void* values, bool is_double, int64_t i) {
  return is_double ? (A)((const double*)values)[i] : (A)((const float*)values)[i];
}

// Of one unit.
template <typename A>
struct LossBuffers {
  alignas(64) A m[TILE], values[TILE], target[TILE], x0[TILE], x_t[TILE];
  alignas(64) A grad_m[TILE], grad_values[TILE], both[2 * TILE];
};

// places: [n]. Where the halves alternate pixel by pixel, element i of the first half lies at places[i], and that of
// the second `channels` behind.
FD_INLINE void fill_places(int32_t* places, int64_t n, int64_t channels) {
  for (int64_t i = 0, column = 0, place = 0; i < n; ++i, ++place) {
    places[i] = (int32_t)place;
    if (++column == channels) column = 0, place += channels;
  }
}

// A term of the bound in nats or, where GRADIENT, its derivatives.
template <typename V>
struct Term {
  V nats, by_mean, by_log_variance;
};

// Of a sample at t > 0.
template <bool GRADIENT, typename V, typename A>
FD_INLINE Term<V> divergence(V x0, V mu, A coef1, const VarianceRatio<V>& ratio) {
  const V difference = coef1 * (x0 - mu);
  Term<V> term = {};
  if (GRADIENT) {
    term.by_mean = difference * ratio.precision * -coef1;
    term.by_log_variance = normal_kl_by_log_variance(difference, ratio);
  } else {
    term.nats = normal_kl(difference, ratio);
  }
  return term;
}

// Of a sample at t = 0. A call of its own, so that the loop over other timesteps keeps its registers.
template <bool GRADIENT>
__attribute__((noinline)) static Term<f64x8> decoding(f64x8 x0, f64x8 mu, f64x8 log_variance, const LossArgs& args) {
  const f64x8 log_std = log_variance / 2;
  Term<f64x8> term = {};
  if (GRADIENT) {
    const Slopes p = args.discrete ? bin_slopes(x0, mu, log_std, args.levels) : density_slopes(x0, mu, log_std);
    term.by_mean = -p.by_mean;
    term.by_log_variance = p.by_log_std / -2;
  } else {
    term.nats = args.discrete ? -bin_log_probability(x0, mu, log_std, args.levels) : -log_density(x0, mu, log_std);
  }
  return term;
}

// places: [tile], of `fill_places`; read only where the halves alternate.
template <typename A, bool LEARNED, bool GRADIENT>
static void loss_unit(const LossArgs& args, int64_t unit, const int32_t* places) {
  typedef typename Lanes<A>::Vector V;
  LossBuffers<A> buffers;
  const int64_t size = args.per_sample, units = (size + args.tile - 1) / args.tile;
  const int64_t sample = unit / units, first = unit % units * args.tile, at = sample * size + first;
  const int64_t n = size - first < args.tile ? size - first : args.tile;
  const bool is_double = args.output.dtype == Dtype::F64, alternate = LEARNED && args.channels != 0;
  const bool has_target = args.target.data != nullptr, has_bound = args.x0.data != nullptr;
  // Where this unit lies in the output; its second half follows `size` behind, or alternates with the first.
  const int64_t begin = alternate ? 2 * at : LEARNED ? at + sample * size : at;

  const A *m = buffers.m, *values = buffers.values;
  if (alternate) {
    const A* both = run_at(args.output, begin, 2 * n, buffers.both);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      buffers.m[i] = both[places[i]];
      buffers.values[i] = both[places[i] + args.channels];
    }
  } else {
    m = run_at(args.output, begin, n, buffers.m);
    if (LEARNED) values = run_at(args.output, begin + size, n, buffers.values);
  }
  const A* target = has_target ? run_at(args.target, at, n, buffers.target) : nullptr;
  const A* x0 = has_bound ? run_at(args.x0, at, n, buffers.x0) : nullptr;
  const A* x_t = has_bound ? run_at(args.x_t, at, n, buffers.x_t) : nullptr;

  A row[6] = {};
  const int64_t t = has_bound ? args.t[sample] : 0;
  for (int i = 0; has_bound && i < 6; ++i) row[i] = number_at<A>(args.table, is_double, 6 * t + i);
  const A coef1 = row[0], log_q = row[1], px = row[4], pm = row[5], clip = (A)args.clip;
  const A middle = (row[3] + row[2]) / 2, slope = (row[3] - row[2]) / 2;
  const V exp_log_q = exp_v(splat(log_q));
  V log_variance = splat(row[2]);
  VarianceRatio<V> ratio = variance_ratio(log_variance, log_q, exp_log_q);
  A mse_scale = 0, bound_scale = 0;
  if (GRADIENT && args.grad_mse != nullptr)
    mse_scale = number_at<A>(args.grad_mse, is_double, sample) * (A)(2.0 / size);
  if (GRADIENT && args.grad_bound != nullptr)
    bound_scale = number_at<A>(args.grad_bound, is_double, sample) * (A)(1 / (LN_2 * size));

  V squares = {}, nats = {}, misses = {};
  for (int64_t i = 0; i < n; i += Lanes<A>::COUNT) {
    const int64_t left = n - i;
    const V m_i = load_lanes(m + i, left);
    V grad_m = {}, grad_values = {};
    if (has_target) {
      const V difference = m_i - load_lanes(target + i, left);
      if (GRADIENT)
        grad_m = difference * mse_scale;
      else
        add_lanes<A>(squares, difference * difference, left);
    }
    if (has_bound) {
      const V x0_i = load_lanes(x0 + i, left), free = px * load_lanes(x_t + i, left) + pm * m_i;
      const V mu = clip > 0 ? min_v(max_v(free, splat(-clip)), splat(clip)) : free;
      if (LEARNED) log_variance = middle + slope * load_lanes(values + i, left);
      Term<V> term = {};
      if constexpr (sizeof(A) == 8)
        if (t == 0) term = decoding<GRADIENT>(x0_i, mu, log_variance, args);
      if (t != 0) {
        if (LEARNED) ratio = variance_ratio(log_variance, log_q, exp_log_q);
        term = divergence<GRADIENT>(x0_i, mu, coef1, ratio);
      }
      if (!GRADIENT) {
        add_lanes<A>(nats, term.nats, left);
        add_lanes<A>(misses, (mu - x0_i) * (mu - x0_i), left);
      } else {
        // Where x_0 is clipped it has no gradient.
        const V by_m = term.by_mean * (pm * bound_scale);
        if (!args.detach_mean) grad_m += clip > 0 ? select(abs_v(free) <= clip, by_m, (V){}) : by_m;
        grad_values = term.by_log_variance * (slope * bound_scale);
      }
    }
    if (GRADIENT) {
      store_lanes(buffers.grad_m + i, left, grad_m);
      if (LEARNED) store_lanes(buffers.grad_values + i, left, grad_values);
    }
  }
  if (!GRADIENT) {
    args.sums[3 * unit] = sum_of_lanes(squares), args.sums[3 * unit + 1] = sum_of_lanes(nats),
                  args.sums[3 * unit + 2] = sum_of_lanes(misses);
  } else if (alternate) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      buffers.both[places[i]] = buffers.grad_m[i];
      buffers.both[places[i] + args.channels] = buffers.grad_values[i];
    }
    store_run(buffers.both, args.gradient, begin, 2 * n);
  } else {
    store_run(buffers.grad_m, args.gradient, begin, n);
    if (LEARNED) store_run(buffers.grad_values, args.gradient, begin + size, n);
  }
}

template <bool LEARNED, bool GRADIENT>
static void loss_units(const LossArgs& args, int64_t first_unit, int64_t last_unit) {
  alignas(64) int32_t places[TILE];
  if (LEARNED && args.channels != 0) fill_places(places, args.tile, args.channels);
  const int64_t units = (args.per_sample + args.tile - 1) / args.tile;
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const bool decodes = args.x0.data != nullptr && args.t[unit / units] == 0;
    if (decodes || args.output.dtype == Dtype::F64)
      loss_unit<double, LEARNED, GRADIENT>(args, unit, places);
    else
      loss_unit<float, LEARNED, GRADIENT>(args, unit, places);
  }
}

void run_losses(const LossArgs& args, int64_t first_unit, int64_t last_unit) {
  const bool gradient = args.gradient.data != nullptr;
  if (args.learned)
    (gradient ? loss_units<true, true> : loss_units<true, false>)(args, first_unit, last_unit);
  else
    (gradient ? loss_units<false, true> : loss_units<false, false>)(args, first_unit, last_unit);
}

}  // namespace fastdiff::FD_VARIANT
