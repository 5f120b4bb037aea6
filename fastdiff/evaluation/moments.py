"""Counts, sums and outer products of features: what the Fréchet distance needs of a set, added up over its parts."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fastdiff.files.atomic import atomic_path
from fastdiff.process.arguments import spelt

__all__ = ["Array", "Gaussian", "Moments", "frechet_between", "merge"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal distribution that is fitted to a set of features.

    Attributes:
        mean: float64 [D].
        covariance: float64 [D, D], unbiased.
        count: Images that it was fitted to; None where a file does not say.
    """

    mean: Array
    covariance: Array
    count: int | None = None

    def __post_init__(self) -> None:
        width = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (width, width):
            raise ValueError(
                f"mean and covariance must be [D] and [D, D], got {list(self.mean.shape)} and "
                f"{list(self.covariance.shape)}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("mean and covariance hold NaN or infinite values")

    def save(self, path: str | Path) -> Path:
        """Write a .npz with mu and sigma, as EDM's scripts read it, and num, the count."""
        count = {} if self.count is None else {"num": np.int64(self.count)}
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, mu=self.mean, sigma=self.covariance, **count)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a .npz with mu and sigma.

        Raises:
            ValueError: it has none, or is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                if not {"mu", "sigma"} <= set(archive.files):
                    raise ValueError(f"it holds {', '.join(archive.files) or 'nothing'}, and not mu and sigma")
                mean, covariance = (np.asarray(archive[key], dtype=np.float64) for key in ("mu", "sigma"))
                count = int(archive["num"]) if "num" in archive.files else None
                return cls(mean, covariance, count)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no statistics: {error}") from error


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over a set of features. Those of two sets added up are those of both.

    Attributes:
        count: Images.
        total: float64 [D], the sum of the features.
        outer: float64 [D, D], the sum of their outer products.
    """

    count: int
    total: Array
    outer: Array

    @classmethod
    def of(cls, features: npt.ArrayLike) -> Self:
        """The sums over features [N, D], in float64.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2:
            raise ValueError(f"features must be [N, D], got shape {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise ValueError("the features hold NaN or infinite values")
        return cls(len(rows), rows.sum(axis=0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets."""
        if self.total.shape != other.total.shape:
            raise ValueError(f"sets of {len(self.total)} and of {len(other.total)} features have no moments together")
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance.

        Raises:
            ValueError: of fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"{spelt('metrics', 'the metric')} fid needs at least 2 images, got {self.count}")
        mean = self.total / self.count
        covariance = (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean, covariance, self.count)

    def save(self, path: str | Path) -> Path:
        """Write a .npz that `load` reads, such as of one shard."""
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, count=np.int64(self.count), total=self.total, outer=self.outer)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: it is something else, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                total, outer = archive["total"], archive["outer"]
                if total.ndim != 1 or outer.shape != 2 * total.shape:
                    raise ValueError(f"total is {list(total.shape)} and outer {list(outer.shape)}")
                return cls(int(archive["count"]), total.astype(np.float64), outer.astype(np.float64))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no moments: {error}") from error


def merge(parts: Iterable[Moments]) -> Moments:
    """The moments of a set from those of its parts: those of the whole, to rounding.

    Raises:
        ValueError: no parts, or parts of other features.
    """
    found = list(parts)
    if not found:
        raise ValueError("there are no moments to merge")
    return functools.reduce(Moments.__add__, found)


def frechet_between(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance between two normal distributions.

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2). The roots are taken from eigenvalues of symmetric
    matrices, so singular covariances do no harm and the result is real.

    Raises:
        ValueError: they are of other features.

    Source: Dowson and Landau (1982); Heusel et al. (2017), arXiv:1706.08500, eq. 6.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"a and b must have the same features, got {len(a.mean)} and {len(b.mean)} of them")
    shift = a.mean - b.mean
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = root @ b.covariance @ root
    # Rounding leaves the product a little asymmetric.
    cross = np.linalg.eigvalsh(0.5 * (product + product.T))
    distance = (
        shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.maximum(cross, 0.0)).sum()
    )
    return float(max(distance, 0.0))
