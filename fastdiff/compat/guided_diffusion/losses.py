"""Losses under their names, with their approximations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.ops.reference import bound as exact

__all__ = ["approx_standard_normal_cdf", "discretized_gaussian_log_likelihood", "normal_kl"]

_FLOOR = 1e-12


def normal_kl(mean1: Tensor | float, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float) -> Tensor:
    """KL divergence of two normals, elementwise, in nats; numbers are taken too, but one argument must be a tensor."""
    values = (mean1, logvar1, mean2, logvar2)
    tensor = next((value for value in values if isinstance(value, Tensor)), None)
    if tensor is None:
        raise ValueError("at least one argument must be a Tensor")
    filled = (value if isinstance(value, Tensor) else tensor.new_tensor(value) for value in values)
    return exact.normal_kl(*filled)


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """The normal CDF by a tanh, off by up to 1.8e-4. Source: Page (1977)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, *, means: Tensor, log_scales: Tensor) -> Tensor:
    """log of the probability that a Gaussian gives to the 8-bit bin around x, with the tanh and a floor of 1e-12.

    Bins are 2/255 wide and centred on x as it is; below -0.999 and above 0.999 they reach to infinity. For the exact
    CDF, and other numbers of levels, see `fastdiff.ops.reference.bound.discretized_gaussian_log_likelihood`.

    Args:
        x: Images [B, ...] in [-1, 1].
        means: Of the Gaussian, x's shape.
        log_scales: Logs of the standard deviations, x's shape.

    Raises:
        ValueError: shapes that differ.
    """
    if not x.shape == means.shape == log_scales.shape:
        raise ValueError(
            f"x, means and log_scales must have one shape, got {[list(a.shape) for a in (x, means, log_scales)]}"
        )
    centred, inverse = x - means, torch.exp(-log_scales)
    upper = approx_standard_normal_cdf(inverse * (centred + 1 / 255))
    lower = approx_standard_normal_cdf(inverse * (centred - 1 / 255))
    share = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return torch.log(share.clamp(min=_FLOOR))
