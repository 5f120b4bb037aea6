"""Precision, recall, density and coverage of samples, by the balls around their nearest neighbours."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

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
    for i in _blocks(len(x)):
        for j in _blocks(len(y)):
            distances = _squares(x[i], y[j])
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
    found = np.empty(len(rows))
    for i in _blocks(len(rows)):
        nearest = np.empty((i.stop - i.start, 0))
        for j in _blocks(len(rows)):
            distances = _squares(rows[i], rows[j])
            if i == j:
                # A row is not its own neighbour, whatever rounding leaves of its distance.
                np.fill_diagonal(distances, np.inf)
            if distances.shape[1] > k:
                distances = np.partition(distances, k - 1, axis=1)[:, :k]
            nearest = np.concatenate([nearest, distances], axis=1)
        found[i] = np.partition(nearest, k - 1, axis=1)[:, k - 1]
    return found


def _squares(x: Array, y: Array) -> Array:
    found = x @ y.T
    found *= -2
    found += (x**2).sum(axis=1)[:, None]
    found += (y**2).sum(axis=1)[None]
    return np.asarray(np.maximum(found, 0.0, out=found))


def _blocks(num: int) -> list[slice]:
    return [slice(first, min(first + _BLOCK, num)) for first in range(0, num, _BLOCK)]
