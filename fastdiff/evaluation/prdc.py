"""Precision, recall, density and coverage of samples, by the balls around their nearest neighbours."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdiff.evaluation.moments import Array
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number

__all__ = ["Prdc", "prdc"]

NEIGHBOURS = 5
# Rows and columns of the distances that are in memory at a time: 32 MiB.
_BLOCK = 2048


@dataclass(frozen=True)
class Prdc:
    """How far samples look real, and reality is sampled; each at least 0, and all but density at most 1.

    Attributes:
        precision: Share of the samples in the ball of a real image, out to its k-th nearest real neighbour.
        recall: Share of the real images in the ball of a sample.
        density: Balls of real images that a sample is in, on average, over k.
        coverage: Share of the real images with a sample in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


def prdc(samples: npt.ArrayLike, real: npt.ArrayLike, *, neighbours: int = NEIGHBOURS) -> Prdc:
    """Precision, recall, density and coverage.

    Distances are taken in float64 and in blocks, so that memory grows with the number of images and not its square.

    Args:
        samples: Features [N, D].
        real: Features [M, D].
        neighbours: k, at least 1.

    Raises:
        ValueError: k or fewer images in a set, or sets of other features.

    Source: Kynkäänniemi et al. (2019), arXiv:1904.06991, eq. 1 to 3; Naeem et al. (2020), arXiv:2002.09797, eq. 5 to 8.
    """
    k = whole_number(spelt("neighbours"), neighbours, low=1)
    x, y = np.asarray(samples, dtype=np.float64), np.asarray(real, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"samples and real must be features [N, D] and [M, D], got shapes {list(x.shape)} and {list(y.shape)}"
        )
    if min(len(x), len(y)) <= k:
        raise ValueError(
            f"{spelt('metrics', 'the metric')} prdc needs at least {k + 1} images of each set, one more than "
            f"{spelt('neighbours', 'neighbours')}, got {min(len(x), len(y))}"
        )
    # Distances stay as they are, and their squares cancel less.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    around_samples, around_real = _radii(x, k), _radii(y, k)
    inside = np.zeros(len(x), dtype=np.int64)
    recalled, covered = np.zeros(len(y), dtype=bool), np.zeros(len(y), dtype=bool)
    left, right = _factors(x)[0], _factors(y)[1]
    for i in _blocks(len(x)):
        for j in _blocks(len(y)):
            distances = _squares(left[i], right[j])
            in_real = distances < around_real[None, j]
            inside[i] += in_real.sum(axis=1)
            covered[j] |= in_real.any(axis=0)
            recalled[j] |= (distances < around_samples[i, None]).any(axis=0)
    return Prdc(
        precision=float((inside > 0).mean()),
        recall=float(recalled.mean()),
        density=float(inside.mean() / k),
        coverage=float(covered.mean()),
    )


def _radii(rows: Array, k: int) -> Array:
    """The squared distance of each row to its k-th nearest other row."""
    nearest = torch.full((len(rows), k), torch.inf, dtype=torch.float64)
    left, right = _factors(rows)
    for i in _blocks(len(rows)):
        for j in _blocks(len(rows)):
            if j.start < i.start:
                continue
            distances = _squares(left[i], right[j])
            if i == j:
                # A row is not its own neighbour, whatever rounding leaves of its distance.
                np.fill_diagonal(distances, np.inf)
            _keep_nearest(nearest[i], torch.from_numpy(distances))
            if i != j:
                _keep_nearest(nearest[j], torch.from_numpy(distances.T))
    return np.asarray(nearest.amax(dim=1).numpy())


def _keep_nearest(nearest: Tensor, distances: Tensor) -> None:
    """Take the least of each row and of what it has, [n, k], in place."""
    k = nearest.shape[1]
    found = distances.topk(min(k, distances.shape[1]), dim=1, largest=False, sorted=False).values
    nearest.copy_(torch.cat([nearest, found], dim=1).topk(k, dim=1, largest=False, sorted=False).values)


def _factors(rows: Array) -> tuple[Array, Array]:
    """[x, |x|^2, 1] and [-2 x, 1, |x|^2]: the product of one of these and another is the squared distance."""
    squares, ones = (rows**2).sum(axis=1, keepdims=True), np.ones((len(rows), 1))
    return np.hstack([rows, squares, ones]), np.hstack([-2 * rows, ones, squares])


def _squares(left: Array, right: Array) -> Array:
    found = left @ right.T
    return np.asarray(np.maximum(found, 0.0, out=found))


def _blocks(num: int) -> list[slice]:
    return [slice(first, min(first + _BLOCK, num)) for first in range(0, num, _BLOCK)]
