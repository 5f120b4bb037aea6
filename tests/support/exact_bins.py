"""A Gaussian's probability of each value of a grid, to fifty digits."""

import mpmath
import torch
from torch import Tensor


def exact_bin(k: int, levels: int, mean: float, std: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """log p of a bin, and its derivatives by the mean and by log std."""
    with mpmath.workdps(50):
        low, high = (
            (mpmath.mpf(edge) / (levels - 1) - mpmath.mpf(mean)) / std for edge in (2 * k - levels, 2 * k + 2 - levels)
        )
        low = -mpmath.inf if k == 0 else low
        high = mpmath.inf if k == levels - 1 else high
        # Survival functions in the right tail, else CDFs, so that no digits cancel.
        sign = 1 if low > 0 else -1
        tails = [mpmath.erfc(sign * z / mpmath.sqrt(2)) / 2 for z in (low, high)]
        p = sign * (tails[0] - tails[1])
        density = [mpmath.npdf(z) for z in (low, high)]
        moment = [0 if mpmath.isinf(z) else z * d for z, d in zip((low, high), density, strict=True)]
        return mpmath.log(p), (density[0] - density[1]) / (std * p), (moment[0] - moment[1]) / p


def grid(levels: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(levels, dtype=dtype) * 2 / (levels - 1) - 1
