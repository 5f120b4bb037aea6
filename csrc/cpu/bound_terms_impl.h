// Terms of the variational bound, elementwise, with their derivatives. The formulas are those of the ops' references.
//
// Phi and phi are the normal distribution and its density. The bins' terms exist in float64 alone: a bin's edges are
// differences of nearly equal numbers, and one timestep in T has bins.
#pragma once

#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

constexpr double SQRT_HALF = 0.70710678118654752440, LN_2 = 0.69314718055994530942;
constexpr double SQRT_2_BY_PI = 0.79788456080286535588, INV_SQRT_2_PI = 0.39894228040143267794;
constexpr double HALF_LOG_2_PI = 0.91893853320467274178;
// Bins of a width h at a distance c, in standard deviations, are integrated by a series where both h and h |c|
// are below this.
constexpr double SERIES_LIMIT = 0.03;

// What the KL of two normals needs of their log-variances. exp(d) is a product: one exponential serves for both.
template <typename V>
struct VarianceRatio {
  V precision;  // exp(-log_variance)
  V d, excess;  // log_q - log_variance, exp(d) - 1 - d
};

template <typename V, typename A>
FD_INLINE VarianceRatio<V> variance_ratio(V log_variance, A log_q, V exp_log_q) {
  VarianceRatio<V> r;
  r.precision = exp_v(-log_variance);
  r.d = log_q - log_variance;
  r.excess = select(abs_v(r.d) < (A)0.5, exp_excess(r.d), exp_log_q * r.precision - (r.d + (A)1));
  return r;
}

// KL of two normals whose means differ by `difference`.
template <typename V>
FD_INLINE V normal_kl(V difference, const VarianceRatio<V>& r) {
  return (r.excess + difference * difference * r.precision) / 2;
}

// Derivative of the above by the log-variance; that by the difference is difference * precision.
template <typename V>
FD_INLINE V normal_kl_by_log_variance(V difference, const VarianceRatio<V>& r) {
  return (r.excess + r.d + difference * difference * r.precision) / -2;
}

// log(1 + x) for -1/2 <= x: the rounding of 1 + x is put back.
FD_INLINE f64x8 log1p_v(f64x8 x) {
  const f64x8 sum = 1.0 + x;
  return log_v(sum) + (x - (sum - 1.0)) / sum;
}

FD_INLINE f64x8 expm1_v(f64x8 x) { return select(abs_v(x) < 0.5, exp_excess(x) + x, exp_v(x) - 1.0); }

// log erfcx(z) = log(exp(z^2) erfc(z)) for z >= 0, to 1e-15: log t + P(2 t - 1) with t = 2 / (2 + z) and P in Chebyshev
// polynomials, as in Press et al., Numerical Recipes, 3rd ed., section 6.2.2; coefficients from 60 digits.
FD_INLINE f64x8 log_erfcx(f64x8 z) {
  constexpr double COEFFICIENTS[] = {
      -0.65132685989085472,    0.64196979235649026,     0.019476473204185836,    -0.0095615147868086316,
      -0.00094659534448203687, 0.00036683949785276145,  4.2523324806907772e-5,   -2.0278578112534243e-5,
      -1.6242900046470255e-6,  1.3036558355805232e-6,   1.5626441722066143e-8,   -8.5238095914926543e-8,
      6.5290544390988515e-9,   5.0593434955514689e-9,   -9.9136415649303309e-10, -2.2736512229318359e-10,
      9.6467911020155268e-11,  2.3940380830391147e-12,  -6.8860275264975534e-12, 8.9448792730907257e-13,
      3.1309213993429581e-13,  -1.1270822361367252e-13, 3.8109052551892321e-16,  7.106097613609237e-15,
      -1.5230282014571043e-15, -9.457494571291234e-17,  1.210237189224279e-16,   -2.816663087747177e-17};
  const f64x8 t = 2.0 / (2.0 + z), twice = 4.0 * t - 2.0;
  f64x8 next = {}, p = {};
#pragma GCC unroll 28
  for (int i = 27; i > 0; --i) {
    const f64x8 before = next;
    next = p;
    p = twice * next - before + COEFFICIENTS[i];
  }
  return log_v(t) + (0.5 * twice * p - next + COEFFICIENTS[0]);
}

// log Phi(x) and phi(x) / Phi(x), which is its derivative; g = log erfcx(|x| / sqrt 2) is what both are made of.
struct Tail {
  f64x8 g, log_phi, hazard;
};

FD_INLINE Tail tail_of(f64x8 x, f64x8 g) {
  const f64x8 z = abs_v(x) * SQRT_HALF, squares = z * z;
  const f64x8 half_erfc = 0.5 * exp_v(g - squares);
  const f64x8 right = INV_SQRT_2_PI * exp_v(-squares) / (1.0 - half_erfc);
  return {g, select(x > 0, log1p_v(-half_erfc), g - squares - LN_2), select(x > 0, right, SQRT_2_BY_PI * exp_v(-g))};
}

// The bin of a value among `levels`, as seen from the mean, in standard deviations.
struct Bin {
  i64x8 is_first, is_last, narrow;
  f64x8 low, high, centre, width;
  // The same mirrored so that it lies in the left half, where log Phi is accurate.
  f64x8 left, right;
};

FD_INLINE Bin bin_of(f64x8 x, f64x8 mean, f64x8 inverse_std, double levels) {
  const double last = levels - 1;
  const f64x8 magic = splat(0x1.8p52);
  const f64x8 index = min_v(max_v((x + 1.0) * (last / 2), splat(0.0)), splat(last)) + magic - magic;
  Bin b;
  // Neighbours compute the edge between them as one number, or the bins of a narrow Gaussian would overlap by rounding.
  b.low = ((2.0 * index - levels) / last - mean) * inverse_std;
  b.high = ((2.0 * index + (2 - levels)) / last - mean) * inverse_std;
  b.centre = ((2.0 * index + (1 - levels)) / last - mean) * inverse_std;
  b.width = (2 / last) * inverse_std;
  b.is_first = index == 0;
  b.is_last = index == last;
  b.narrow = (b.width < SERIES_LIMIT) & (b.width * abs_v(b.centre) < SERIES_LIMIT);
  b.left = select(b.centre > 0, -b.high, b.low);
  b.right = select(b.centre > 0, -b.low, b.high);
  return b;
}

// log(Phi(left) / Phi(right)), below 0. In the tail the difference of the squares is exact.
FD_INLINE f64x8 gap_of(const Bin& b, const Tail& left, const Tail& right) {
  const f64x8 in_tail = left.g - right.g + 0.5 * b.width * (b.left + b.right);
  // Right of 0 the bin holds the mean: both logs are of order 1.
  return min_v(select(b.right > 0, left.log_phi - right.log_phi, in_tail), splat(-0x1p-52));
}

FD_INLINE Tail tail_of(f64x8 x) { return tail_of(x, log_erfcx(abs_v(x) * SQRT_HALF)); }

// The first and the last bin have one edge; their probability is Phi of this.
FD_INLINE f64x8 edge_of(const Bin& b) { return select(b.is_first, b.high, -b.low); }

// It is an end of the mirrored bin, or minus one, so g is known.
FD_INLINE Tail edge_tail(const Bin& b, const Tail& left, const Tail& right) {
  return tail_of(edge_of(b), select(b.is_first ^ (b.centre > 0), right.g, left.g));
}

// log of the probability that a normal distribution gives to the bin of x.
FD_INLINE f64x8 bin_log_probability(f64x8 x, f64x8 mean, f64x8 log_std, double levels) {
  const Bin b = bin_of(x, mean, exp_v(-log_std), levels);
  const Tail left = tail_of(b.left), right = tail_of(b.right);
  const f64x8 inner = right.log_phi + log_v(-expm1_v(gap_of(b, left, right)));

  // Where both ends nearly agree: the density times a series in the width.
  const f64x8 c2 = b.centre * b.centre, h2 = b.width * b.width;
  const f64x8 correction = h2 * ((c2 - 1.0) / 24 + h2 * ((c2 - 6.0) * c2 + 3.0) / 1920);
  const double log_step = __builtin_log(2 / (levels - 1));
  const f64x8 series = (log_step - log_std) - 0.5 * c2 - HALF_LOG_2_PI + log1p_v(correction);

  const f64x8 edge = edge_tail(b, left, right).log_phi;
  return select(b.is_first | b.is_last, edge, select(b.narrow, series, inner));
}

// Derivatives of a log-probability or log-density by the mean and by log_std.
struct Slopes {
  f64x8 by_mean, by_log_std;
};

FD_INLINE Slopes bin_slopes(f64x8 x, f64x8 mean, f64x8 log_std, double levels) {
  const f64x8 inverse_std = exp_v(-log_std);
  const Bin b = bin_of(x, mean, inverse_std, levels);
  const Tail left = tail_of(b.left), right = tail_of(b.right);
  const f64x8 gap = gap_of(b, left, right), share = -expm1_v(gap);
  const f64x8 at_left = left.hazard * exp_v(gap), at_right = right.hazard;
  f64x8 by_mean = select(b.centre > 0, at_right - at_left, at_left - at_right) / share;
  f64x8 by_log_std = (b.left * at_left - b.right * at_right) / share;

  // Narrow bins: the derivatives of the series.
  const f64x8 c2 = b.centre * b.centre, h2 = b.width * b.width, cubic = (c2 - 6.0) * c2 + 3.0;
  const f64x8 series = 1.0 + h2 * ((c2 - 1.0) / 24 + h2 * cubic / 1920);
  const f64x8 by_h2 = (c2 - 1.0) / 24 + h2 * cubic / 960, by_c2 = h2 / 24 + h2 * h2 * (c2 - 3.0) / 960;
  by_mean = select(b.narrow, b.centre - 2.0 * b.centre * by_c2 / series, by_mean);
  by_log_std = select(b.narrow, c2 - 1.0 - 2.0 * (h2 * by_h2 + c2 * by_c2) / series, by_log_std);

  const f64x8 edge = edge_of(b), at_edge = edge_tail(b, left, right).hazard;
  const i64x8 is_edge = b.is_first | b.is_last;
  by_mean = select(is_edge, select(b.is_first, -at_edge, at_edge), by_mean);
  by_log_std = select(is_edge, -edge * at_edge, by_log_std);
  return {by_mean * inverse_std, by_log_std};
}

// log N(x; mean, exp(log_std)^2).
FD_INLINE f64x8 log_density(f64x8 x, f64x8 mean, f64x8 log_std) {
  const f64x8 z = (x - mean) * exp_v(-log_std);
  return -0.5 * z * z - log_std - HALF_LOG_2_PI;
}

FD_INLINE Slopes density_slopes(f64x8 x, f64x8 mean, f64x8 log_std) {
  const f64x8 inverse_std = exp_v(-log_std), z = (x - mean) * inverse_std;
  return {z * inverse_std, z * z - 1.0};
}

}  // namespace fastdiff::FD_VARIANT
