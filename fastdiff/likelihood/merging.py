"""Scores of parts of a data set, put together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = ["Moments", "merge"]


@dataclass(frozen=True)
class Moments:
    """Number, mean and spread of some scores; those of parts add up to those of the whole.

    Attributes:
        num: Images.
        mean: Of their scores, such as bits per dimension.
        squares: Sum of the squared deviations from the mean.
    """

    num: int
    mean: float
    squares: float

    @classmethod
    def of(cls, totals: npt.ArrayLike) -> Self:
        """Of scores [n], at least one.

        Raises:
            ValueError: there is none, or one is not finite.
        """
        values = np.asarray(totals, dtype=np.float64).ravel()
        if values.size == 0:
            raise ValueError("there are no scores")
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} scores are NaN or infinite")
        mean = math.fsum(values) / values.size
        return cls(values.size, mean, math.fsum((values - mean) ** 2))

    def __add__(self, other: Self) -> Self:
        """Of both together; Chan, Golub and LeVeque (1983), The American Statistician 37, eq. 1.5."""
        num, shift = self.num + other.num, other.mean - self.mean
        mean = self.mean + shift * other.num / num
        squares = self.squares + other.squares + shift**2 * self.num * other.num / num
        return type(self)(num, mean, squares)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, as an estimate for all images like them; NaN for a single one."""
        return math.sqrt(self.squares / (self.num - 1) / self.num) if self.num > 1 else math.nan


def merge(parts: Iterable[Any]) -> Moments:
    """The mean of the scores of any set of parts, with its standard error.

    Args:
        parts: Results of `bound`, `ode` or `iwae`, or scores [n], or `Moments`, each of other images than the others.

    Returns:
        `Moments` of all: num, mean and standard_error. They are those of the whole to rounding, in any order.

    Raises:
        ValueError: there is no part, or a score is not finite.
    """
    found: Moments | None = None
    for part in parts:
        moments = part if isinstance(part, Moments) else Moments.of(getattr(part, "total", part))
        found = moments if found is None else found + moments
    if found is None:
        raise ValueError("there are no parts to merge")
    return found
