"""The oracle of the losses: forward by `fastdiff.ops.reference.bound`, backward in plain PyTorch by the formulas below.

float32 arithmetic, float64 for float64 input. It is read, not timed. The kernels are held to it, and it to autograd.

For a value x of the data in a bin with edges l < h, in standard deviations from the mean, p = Phi(h) - Phi(l):

    d log p / d log_std = (l phi(l) - h phi(h)) / p,    d log p / d mean = (phi(l) - phi(h)) / (p std)

and for KL = (exp(d) - 1 - d + D^2 exp(-lv)) / 2 with d = lq - lv and D the difference of the means:

    dKL / d lv = (1 - exp(d) - D^2 exp(-lv)) / 2,       dKL / dD = D exp(-lv)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.calls import BoundLossBackwardCall, BoundLossCall, BoundTermsCall, MseBackwardCall, MseCall
from fastdiff.ops.reference import bound
from fastdiff.ops.reference.bound import BoundTable
from fastdiff.tensors import compute_dtype, per_sample

_LN2 = math.log(2.0)


def mse(call: MseCall) -> Tensor:
    """Mean squared difference of each sample, [B], in the dtype of the arithmetic."""
    dtype = compute_dtype(call.output)
    return bound.mse(call.output.to(dtype), call.target.to(dtype))


def mse_backward(call: MseBackwardCall) -> Tensor:
    """Gradient of the output, its shape, from that of `mse`, in the dtype of the arithmetic."""
    grad, output, target = call
    dtype = compute_dtype(output)
    scale = 2 / max(1, output[0].numel()) if output.shape[0] else 0.0
    return per_sample(grad.to(dtype), output) * scale * (output.to(dtype) - target.to(dtype))


def bound_terms(call: BoundTermsCall) -> tuple[Tensor, Tensor]:
    """The bound's term in bits per dimension, and the squared error of the predicted x_0; each [B].

    See `variational_terms` of `bound.py`; x_0 is the prediction px x_t + pm m, clipped to [-clip, clip].
    """
    output, x0, x_t, t, table, clip, learned_variance, decoder, levels = call
    dtype = compute_dtype(output)
    m, values = _halves(output.to(dtype), learned_variance)
    x0, x_t = x0.to(dtype), x_t.to(dtype)
    process = BoundTable.from_rows(table.to(dtype), learned_variance)
    prediction = process.x0(x_t, t, m)
    prediction = prediction if clip is None else prediction.clamp(-clip, clip)
    log_variance = process.log_variance(t, x_t, values)
    terms = bound.variational_terms(x0, t, prediction, log_variance, process, decoder=decoder, levels=levels)
    return terms, bound.mse(prediction, x0)


def bound_loss(call: BoundLossCall) -> tuple[Tensor | None, Tensor]:
    """The term of L_simple, where there is a target, and of the bound in bits per dimension; each [B].

    See `hybrid` of `bound.py`.
    """
    dtype = compute_dtype(call.output)
    m, values = _halves(call.output.to(dtype), call.learned_variance)
    terms = call.terms()
    if call.detach_mean:
        terms = terms._replace(output=m.detach() if values is None else torch.cat([m.detach(), values], dim=1))
    return None if call.target is None else bound.mse(m, call.target.to(dtype)), bound_terms(terms)[0]


def bound_loss_backward(call: BoundLossBackwardCall) -> Tensor:
    """Gradient of the output, its shape, in the dtype of the arithmetic.

    Args:
        call: With the gradients of the two results of `bound_loss`, [B]. Where `detach_mean`, the bound has no gradient
            through the predicted x_0.
    """
    output, grad_mse, grad_bound, target, x0, x_t, t, table, clip, learned_variance, detach_mean, decoder, levels = call
    dtype = compute_dtype(output)
    m, values = _halves(output.to(dtype), learned_variance)
    x0, x_t = x0.to(dtype), x_t.to(dtype)
    process = BoundTable.from_rows(table.to(dtype), learned_variance)
    grad_m = torch.zeros_like(m)
    grad_values = None if values is None else torch.zeros_like(values)
    if grad_mse is not None and target is not None:
        grad_m = mse_backward(MseBackwardCall(grad_mse, m, target))
    if grad_bound is not None:
        prediction = process.x0(x_t, t, m)
        inside = torch.ones_like(m, dtype=torch.bool) if clip is None else prediction.abs() <= clip
        prediction = prediction if clip is None else prediction.clamp(-clip, clip)
        log_variance = process.log_variance(t, x_t, values)
        coef1 = per_sample(process.posterior_mean_coef1[t], m)
        log_q = per_sample(process.posterior_log_variance[t], m)
        kl_mean, kl_log = _kl_slopes(coef1 * (x0 - prediction), log_q, log_variance)
        slopes = _density_slopes if decoder == "gaussian" else _bin_slopes
        p_mean, p_log_std = slopes(x0, prediction, 0.5 * log_variance, levels)
        is_first = per_sample(t == 0, m)
        scale = per_sample(grad_bound.to(dtype), m) / (_LN2 * max(1, m[0].numel() if m.shape[0] else 1))
        if not detach_mean:
            slope = torch.where(is_first, -p_mean, -coef1 * kl_mean) * per_sample(process.pm[t], m)
            grad_m = grad_m + torch.where(inside, scale * slope, 0)
        if values is not None:
            spread = 0.5 * per_sample((process.log_max - process.log_min)[t], m)
            grad_values = scale * spread * torch.where(is_first, -0.5 * p_log_std, kl_log)
    return grad_m if grad_values is None else torch.cat((grad_m, grad_values), dim=1)


def _halves(output: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    if not learned_variance:
        return output, None
    m, values = output.chunk(2, dim=1)
    return m, values


def _kl_slopes(difference: Tensor, log_q: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the KL by the difference of the means and by the log-variance."""
    precision = torch.exp(-log_variance)
    return difference * precision, -0.5 * (torch.expm1(log_q - log_variance) + difference.square() * precision)


def _density_slopes(x: Tensor, mean: Tensor, log_std: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Derivatives of log N(x; mean, std^2) by the mean and by log_std."""
    inverse = torch.exp(-log_std)
    z = (x - mean) * inverse
    return z * inverse, z.square() - 1


def _bin_slopes(x: Tensor, mean: Tensor, log_std: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Derivatives of the log-probability of the bin of x by the mean and by log_std."""
    inverse = torch.exp(-log_std).expand_as(x)
    index = torch.round((x + 1) * ((levels - 1) / 2)).clamp(0, levels - 1)
    centre = ((2 * index + 1 - levels) / (levels - 1) - mean) * inverse
    width = (2 / (levels - 1)) * inverse
    low, high = centre - 0.5 * width, centre + 0.5 * width

    # Mirrored so that the bin lies in the left tail, where densities over probabilities are accurate.
    side = torch.where(centre > 0, -1.0, 1.0)
    left, right = -centre.abs() - 0.5 * width, -centre.abs() + 0.5 * width
    gap = torch.special.log_ndtr(left) - torch.special.log_ndtr(right)
    share = -torch.expm1(gap.clamp(max=-torch.finfo(gap.dtype).eps))
    at_left, at_right = _hazard(left) * torch.exp(gap), _hazard(right)
    by_mean = side * (at_left - at_right) / share
    by_log_std = (left * at_left - right * at_right) / share

    # Narrow bins: the derivatives of the series for log p in `fastdiff.ops.reference.bound`.
    c2, h2 = centre.square(), width.square()
    narrow = (width < bound.SERIES_LIMIT) & (width * centre.abs() < bound.SERIES_LIMIT)
    series = 1 + h2 * ((c2 - 1) / 24 + h2 * ((c2 - 6) * c2 + 3) / 1920)
    by_h2 = (c2 - 1) / 24 + h2 * ((c2 - 6) * c2 + 3) / 960
    by_c2 = h2 / 24 + h2.square() * (c2 - 3) / 960
    by_mean = torch.where(narrow, centre - 2 * centre * by_c2 / series, by_mean)
    by_log_std = torch.where(narrow, c2 - 1 - 2 * (h2 * by_h2 + c2 * by_c2) / series, by_log_std)

    is_first, is_last = index == 0, index == levels - 1
    by_mean = torch.where(is_first, -_hazard(high), torch.where(is_last, _hazard(-low), by_mean))
    by_log_std = torch.where(is_first, -high * _hazard(high), torch.where(is_last, low * _hazard(-low), by_log_std))
    return by_mean * inverse, by_log_std


def _hazard(x: Tensor) -> Tensor:
    """phi(x) / Phi(x), the derivative of log Phi."""
    slope: Tensor = math.sqrt(2 / math.pi) / torch.special.erfcx(x * -math.sqrt(0.5))
    return slope
