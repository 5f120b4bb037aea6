"""Power-function averages: how they weigh the past, and how stored ones are combined into others.

The average of exponent gamma at t steps is (gamma + 1) / t^(gamma + 1) times the integral of tau^gamma theta(tau) over
[0, t], theta(tau) being the weights after step ceil(tau). Its profile, that of tau, has a relative standard deviation
`width` (sigma_rel), which is how such averages are named.

Source: Karras et al. (2024), arXiv:2312.02696, section 3 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff.process.checks import shown

__all__ = ["MAX_WIDTH", "Combination", "checked_width", "combine", "exponent", "overlap", "power_decay"]

MAX_WIDTH = 12**-0.5
"""Of the plain average of all weights, whose exponent is 0."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Combination:
    """How an average is made of stored ones.

    Attributes:
        weights: [n] float64, of the stored averages; their sum is 1.
        error: The L2 norm of what is wrong in the profile, by the L2 norm of the profile; 0 where it is exact. The
            average itself is then off by at most error * (gamma + 1) / sqrt(2 gamma + 1) times the root mean square,
            over the steps, of the weights' distance from any fixed value.
    """

    weights: Array
    error: float


def checked_width(name: str, value: object) -> float:
    """The width, if it is one of a power-function average.

    Raises:
        ValueError: it is not a number in (0, 12^-1/2).
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_WIDTH:
        raise ValueError(
            f"{name} must be a number in (0, {MAX_WIDTH:.4f}), where the upper end averages all weights alike, got "
            f"{shown(value)}"
        )
    return float(value)


def exponent(width: float) -> float:
    """gamma of the profile whose relative standard deviation is `width`, in (0, 12^-1/2).

    Source: arXiv:2312.02696, eq. 123 and 126: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic in gamma.
    """
    precision = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision])
    return float(roots.real.max())


def power_decay(gamma: float, taken: int) -> float:
    """beta = (1 - 1/t)^(gamma + 1), with which the average takes in the weights after step t = `taken`, from 1.

    Source: arXiv:2312.02696, eq. 127. The average is then exactly the integral above.
    """
    return float((1 - 1 / taken) ** (gamma + 1))


def overlap(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> Array:
    """The integral of the product of two profiles, over all tau; arguments broadcast.

    With s the lesser of t_a and t_b, and u the greater, it is (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1)
    (s / t_a)^gamma_a (s / t_b)^gamma_b / u.

    Source: arXiv:2312.02696, eq. 151.
    """
    first, second = np.asarray(gamma_a, np.float64), np.asarray(gamma_b, np.float64)
    ends = np.asarray(t_a, np.float64), np.asarray(t_b, np.float64)
    both, either = np.minimum(*ends), np.maximum(*ends)
    scale = (first + 1) * (second + 1) / (first + second + 1)
    return np.asarray(scale * (both / ends[0]) ** first * (both / ends[1]) ** second / either, np.float64)


def combine(steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> Combination:
    """The combination of stored averages that is nearest to another one, by least squares of the profiles.

    Args:
        steps: Steps taken at each stored average, at least 1; no pair of step and width twice.
        widths: Of each stored average.
        step: Steps taken at the average asked for.
        width: Of the average asked for.

    Returns:
        The weights, scaled to a sum of 1 as in the authors' code, and the error that is left. An average that is stored
        is itself, exactly.

    Source: arXiv:2312.02696, algorithm 3.
    """
    stored = list(zip(steps, widths, strict=True))
    if (step, width) in stored:
        weights = np.zeros(len(stored))
        weights[stored.index((step, width))] = 1
        return Combination(weights, 0.0)
    times, gammas = np.asarray(steps, np.float64), np.array([exponent(one) for one in widths])
    gamma = exponent(width)
    among = overlap(times[:, None], gammas[:, None], times, gammas)
    across = overlap(times, gammas, step, gamma)
    own = float(overlap(step, gamma, step, gamma))
    weights = np.linalg.solve(among, across).astype(np.float64)
    weights /= weights.sum()
    left = own - 2 * float(across @ weights) + float(weights @ among @ weights)
    return Combination(weights, math.sqrt(max(0.0, left) / own))
