"""Terms of the variational bound as Triton device functions: float32, elementwise, with their derivatives.

Phi and phi are the normal distribution and its density. With z = |x| / sqrt 2, t = 1 / (1 + z / 2) and a polynomial P,
erfc(z) = t exp(P(t) - z^2) to 1.2e-7 of itself for all z >= 0 (Press et al., Numerical Recipes, 2nd ed., section 6.2).
So g = log t + P(t) = log erfcx(z) needs no exponential, and log Phi(-x) = g - z^2 - log 2 has no limit but float32's.
"""

from __future__ import annotations

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_2_BY_PI = tl.constexpr(0.7978845608028654)
INV_SQRT_2_PI = tl.constexpr(0.3989422804014327)
HALF_LOG_2_PI = tl.constexpr(0.9189385332046727)
LN_2 = tl.constexpr(0.6931471805599453)
# As in `fastdiff.ops.reference.bound`: narrower bins are integrated by a series.
SERIES_LIMIT = tl.constexpr(0.03)


@triton.jit
def expm1(x):
    """exp(x) - 1, also where x is small."""
    small = 1 + x * (1 / 5 + x * (1 / 30 + x * (1 / 210 + x * (1 / 1680))))
    small = x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24) * small)))
    return tl.where(tl.abs(x) < 0.5, small, tl.exp(x) - 1)


@triton.jit
def log_erfcx(z):
    """g of the module's text, for z >= 0."""
    t = 1 / (1 + 0.5 * z)
    p = 0.17087277 * t - 0.82215223
    p = ((p * t + 1.48851587) * t - 1.13520398) * t + 0.27886807
    p = ((p * t - 0.18628806) * t + 0.09678418) * t + 0.37409196
    p = (p * t + 1.00002368) * t - 1.26551223
    return tl.log(t) + p


@triton.jit
def log_phi(x):
    """log Phi(x)."""
    z = tl.abs(x) * SQRT_HALF
    tail = log_erfcx(z) - z * z
    return tl.where(x > 0, tl.log(1 - 0.5 * tl.exp(tail)), tail - LN_2)


@triton.jit
def hazard(x):
    """phi(x) / Phi(x)."""
    z = tl.abs(x) * SQRT_HALF
    g = log_erfcx(z)
    right = INV_SQRT_2_PI * tl.exp(-z * z) / (1 - 0.5 * tl.exp(g - z * z))
    return tl.where(x > 0, right, SQRT_2_BY_PI * tl.exp(-g))


@triton.jit
def _bin(x, mean, inverse_std, LEVELS: tl.constexpr):
    """Number of the bin of x, its centre and its width, in standard deviations from the mean."""
    index = tl.floor((x + 1) * ((LEVELS - 1) / 2) + 0.5)
    index = tl.minimum(tl.maximum(index, 0.0), LEVELS - 1.0)
    # One rounding, of a quotient of whole numbers.
    centre = ((2 * index - (LEVELS - 1)) / (LEVELS - 1) - mean) * inverse_std
    return index, centre, (2 / (LEVELS - 1)) * inverse_std


@triton.jit
def _gap(left, right, width):
    """log(Phi(left) / Phi(right)) for left = right - width in the left half: the squares' difference is exact."""
    z_left, z_right = -left * SQRT_HALF, tl.abs(right) * SQRT_HALF
    in_tail = log_erfcx(z_left) - log_erfcx(z_right) - width * SQRT_HALF * (z_left + z_right)
    # The bin around the mean: both logs are of order 1.
    return tl.minimum(tl.where(right > 0, log_phi(left) - log_phi(right), in_tail), -1e-7)


@triton.jit
def bin_log_probability(x, mean, log_std, LEVELS: tl.constexpr):
    """log of the probability of the bin of x; see `discretized_gaussian_log_likelihood` of ops/reference/bound.py."""
    index, centre, width = _bin(x, mean, tl.exp(-log_std), LEVELS)
    left, right = -tl.abs(centre) - 0.5 * width, -tl.abs(centre) + 0.5 * width
    inner = log_phi(right) + tl.log(-expm1(_gap(left, right, width)))

    c2, h2 = centre * centre, width * width
    narrow = (width < SERIES_LIMIT) & (width * tl.abs(centre) < SERIES_LIMIT)
    correction = h2 * ((c2 - 1) * (1 / 24) + h2 * ((c2 - 6) * c2 + 3) * (1 / 1920))
    series = tl.log(width) - 0.5 * c2 - HALF_LOG_2_PI + correction * (1 - 0.5 * correction)
    inner = tl.where(narrow, series, inner)
    edge = tl.where(index == 0, centre + 0.5 * width, 0.5 * width - centre)
    return tl.where((index == 0) | (index == LEVELS - 1), log_phi(edge), inner)


@triton.jit
def bin_slopes(x, mean, log_std, LEVELS: tl.constexpr):
    """Derivatives of `bin_log_probability` by the mean and by log_std; see `fastdiff.ops.reference.losses`."""
    inverse_std = tl.exp(-log_std)
    index, centre, width = _bin(x, mean, inverse_std, LEVELS)
    left, right = -tl.abs(centre) - 0.5 * width, -tl.abs(centre) + 0.5 * width
    gap = _gap(left, right, width)
    share = -expm1(gap)
    at_left, at_right = hazard(left) * tl.exp(gap), hazard(right)
    by_mean = tl.where(centre > 0, at_right - at_left, at_left - at_right) / share
    by_log_std = (left * at_left - right * at_right) / share

    c2, h2 = centre * centre, width * width
    narrow = (width < SERIES_LIMIT) & (width * tl.abs(centre) < SERIES_LIMIT)
    whole = 1 + h2 * ((c2 - 1) * (1 / 24) + h2 * ((c2 - 6) * c2 + 3) * (1 / 1920))
    by_h2 = (c2 - 1) * (1 / 24) + h2 * ((c2 - 6) * c2 + 3) * (1 / 960)
    by_c2 = h2 * (1 / 24) + h2 * h2 * (c2 - 3) * (1 / 960)
    by_mean = tl.where(narrow, centre - 2 * centre * by_c2 / whole, by_mean)
    by_log_std = tl.where(narrow, c2 - 1 - 2 * (h2 * by_h2 + c2 * by_c2) / whole, by_log_std)

    is_first = index == 0
    is_edge = is_first | (index == LEVELS - 1)
    edge = tl.where(is_first, centre + 0.5 * width, 0.5 * width - centre)
    at_edge = hazard(edge)
    by_mean = tl.where(is_edge, tl.where(is_first, -at_edge, at_edge), by_mean)
    by_log_std = tl.where(is_edge, -edge * at_edge, by_log_std)
    return by_mean * inverse_std, by_log_std


@triton.jit
def density(x, mean, log_std):
    """log N(x; mean, exp(log_std)^2)."""
    z = (x - mean) * tl.exp(-log_std)
    return -0.5 * z * z - log_std - HALF_LOG_2_PI


@triton.jit
def density_slopes(x, mean, log_std):
    """Derivatives of `density` by the mean and by log_std."""
    inverse_std = tl.exp(-log_std)
    z = (x - mean) * inverse_std
    return z * inverse_std, z * z - 1


@triton.jit
def normal_kl(difference, log_q, log_variance):
    """KL of two normals whose means differ by `difference`; see `fastdiff.ops.reference.bound.normal_kl`."""
    d = log_q - log_variance
    return 0.5 * (expm1(d) - d + difference * difference * tl.exp(-log_variance))


@triton.jit
def normal_kl_slopes(difference, log_q, log_variance):
    """Derivatives of `normal_kl` by the difference of the means and by the log-variance."""
    precision = tl.exp(-log_variance)
    return difference * precision, -0.5 * (expm1(log_q - log_variance) + difference * difference * precision)


@triton.jit
def load_rows(table_ptr, t, num_timesteps):
    """The six numbers of timestep t, NaN where it is out of range."""
    valid = (t >= 0) & (t < num_timesteps)
    ptr = table_ptr + t * 6
    coef1 = tl.load(ptr, mask=valid, other=float("nan"))
    log_q = tl.load(ptr + 1, mask=valid, other=float("nan"))
    log_min = tl.load(ptr + 2, mask=valid, other=float("nan"))
    log_max = tl.load(ptr + 3, mask=valid, other=float("nan"))
    px = tl.load(ptr + 4, mask=valid, other=float("nan"))
    pm = tl.load(ptr + 5, mask=valid, other=float("nan"))
    return coef1, log_q, log_min, log_max, px, pm


@triton.jit
def output_places(first, offsets, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Where elements first + offsets of a sample lie in the network's output, counted from its sample.

    WIDE: the output has a second half. In channels_last memory, CHANNELS != 0, it is interleaved pixel by pixel.
    """
    if WIDE and CHANNELS != 0:
        element = first + offsets
        places = element + (element // CHANNELS) * CHANNELS
    else:
        places = first + offsets
    return places
