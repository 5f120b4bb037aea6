"""Two models on the same images: the paired difference of their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdiff.files.data import DataScaling
from fastdiff.likelihood.variational import standard_error


class Scorer(Protocol):
    """A model that scores images, such as a `fastdiff.Pipeline`."""

    unet: Any
    scaling: DataScaling

    def likelihood(self, x: Tensor, method: Any = ..., *, labels: Tensor | None = None, **options: Any) -> Any:
        """Scores of images in bits/dim."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Bits/dim of model a less those of model b, on the same images with the same noise.

    Attributes:
        difference: [B] float64; negative where a is better.
        interval: Of the mean difference over all images like these, at `confidence`, by Student's t.
        confidence: Share of such intervals that hold the mean, in (0, 1).
        totals: [2, B] float64, the scores of a and of b.
    """

    difference: Tensor
    interval: tuple[float, float]
    confidence: float
    totals: Tensor

    @property
    def mean(self) -> float:
        """Mean of the difference over the images."""
        return float(self.difference.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`."""
        return standard_error(self.difference)

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval[0] <= 0 <= self.interval[1]

    def summary(self) -> dict[str, float]:
        """For reports."""
        return {
            "difference": self.mean,
            "standard_error": self.standard_error,
            "low": self.interval[0],
            "high": self.interval[1],
            "confidence": self.confidence,
            "bits_per_dim_a": float(self.totals[0].mean()),
            "bits_per_dim_b": float(self.totals[1].mean()),
        }


def compare(
    model_a: Scorer,
    model_b: Scorer,
    x: Tensor,
    *,
    method: Any = "bound",
    confidence: float = 0.95,
    seed: int = 0,
    labels: Tensor | None = None,
    batch_size: int = 64,
) -> Comparison:
    """The difference of two models' bits/dim, paired by image, with its confidence interval.

    Both see the same images and the same noise, so what is hard about an image, and most of the noise, cancels: the
    interval is far narrower than those of the two means.

    Args:
        model_a: A pipeline.
        model_b: Another, for data of the same kind.
        x: Images [B, C, H, W], at least 2; see `Pipeline.likelihood`.
        method: How to score: see `Pipeline.likelihood`.
        confidence: In (0, 1).
        seed: Of the noise of both.
        labels: [B] int64, for networks with classes.
        batch_size: See `Pipeline.likelihood`.

    Raises:
        ValueError: fewer than two images, models of data with different numbers of values, or a confidence out of
            range.

    Source: Student (1908), for the interval.
    """
    if x.shape[0] < 2:
        raise ValueError(f"a confidence interval needs at least 2 images, got {x.shape[0]}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    if model_a.scaling.levels != model_b.scaling.levels:
        raise ValueError(
            f"the models were trained on data of {model_a.scaling.levels} and {model_b.scaling.levels} values, whose "
            "bits/dim cannot be compared"
        )
    totals = torch.stack(
        [
            model.likelihood(
                x,
                method=method,
                seed=seed,
                batch_size=batch_size,
                labels=labels if model.unet.config.num_classes is not None else None,
            ).total
            for model in (model_a, model_b)
        ]
    )
    return paired_difference(totals[0], totals[1], confidence)


def paired_difference(a: Tensor, b: Tensor, confidence: float = 0.95) -> Comparison:
    """`Comparison` of scores [B] that are there already."""
    if a.shape != b.shape or a.ndim != 1 or a.shape[0] < 2:
        raise ValueError(
            f"the scores must be two lists of one length, at least 2, got {list(a.shape)} and {list(b.shape)}"
        )
    totals = torch.stack([a, b]).double()
    difference = totals[0] - totals[1]
    reach = student_quantile(0.5 + confidence / 2, a.shape[0] - 1) * standard_error(difference)
    mean = float(difference.mean())
    return Comparison(difference, (mean - reach, mean + reach), confidence, totals)


def student_quantile(p: float, degrees: int) -> float:
    """The p-quantile of Student's t with `degrees` >= 1 degrees of freedom, for p in (0.5, 1).

    By bisection of the distribution function, which is a finite sum for whole degrees of freedom: Abramowitz and
    Stegun (1964), eq. 26.7.3 and 26.7.4. The normal's quantile beyond a million.
    """
    if degrees > 1_000_000:
        return NormalDist().inv_cdf(p)
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < p:
        low, high = high, 2 * high
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _student_cdf(middle, degrees) < p else (low, middle)
    return 0.5 * (low + high)


def _student_cdf(t: float, degrees: int) -> float:
    """P(T <= t), t >= 0."""
    angle = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = (math.cos(angle), math.cos(angle)) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cos2 * (k - 1) / k
        if term < 1e-18 * total:
            break
        total += term
    if odd:
        inner = angle + (math.sin(angle) * total if degrees > 1 else 0.0)
        return 0.5 + inner / math.pi
    return 0.5 + 0.5 * math.sin(angle) * total
