"""The kernel distance between two sets of features (KID), with its standard error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdiff.evaluation.moments import Array
from fastdiff.process.arguments import spelt

__all__ = ["KernelDistance", "kernel_distance", "polynomial_mmd"]

BLOCK = 1000
"""Images of a block, at most."""
BLOCKS = 10
"""Blocks, at least: from fewer a standard error says little."""
LEAST = 2 * BLOCKS


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        value: The mean over the blocks. It has no bias, so that it may be negative, and sets of any size compare.
        standard_error: Of the mean: the blocks share no image, so it is their deviation over the root of their number.
        blocks: How many.
        block: Images of each, of either set.
    """

    value: float
    standard_error: float
    blocks: int
    block: int


def polynomial_mmd(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Squared maximum mean discrepancy of two sets of features by the kernel (x.y / D + 1)^3, without bias.

    Args:
        a: Features [N, D], N at least 2.
        b: Features [M, D], M at least 2.

    Source: Bińkowski et al. (2018), arXiv:1801.01401, eq. 3 and 4.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            "a and b must be features [N, D] and [M, D] of at least 2 images each, got shapes "
            f"{list(x.shape)} and {list(y.shape)}"
        )
    within = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in map(_kernel, (x, y))]
    return float(within[0] + within[1] - 2 * _kernel(x, y).mean())


def kernel_distance(a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0, block: int = BLOCK) -> KernelDistance:
    """KID: the mean of `polynomial_mmd` over blocks that share no image.

    Args:
        a: Features [N, D].
        b: Features [M, D].
        seed: Of the order in which images go into blocks.
        block: Images of a block, at most; fewer where there would be fewer than ten blocks.

    Raises:
        ValueError: fewer than 20 images in a set.
    """
    x, y = np.asarray(a), np.asarray(b)
    num = min(len(x), len(y))
    if num < LEAST:
        raise ValueError(
            f"{spelt('metrics', 'the metric')} kid needs at least {LEAST} images of each set, {BLOCKS} blocks of 2, "
            f"got {num}"
        )
    size = min(block, num // BLOCKS)
    count = num // size
    orders = [np.random.default_rng([seed, side]).permutation(len(rows)) for side, rows in enumerate((x, y))]
    found: Array = np.array([
        polynomial_mmd(*(rows[order[i * size : (i + 1) * size]] for rows, order in zip((x, y), orders, strict=True)))
        for i in range(count)
    ])  # fmt: skip
    return KernelDistance(float(found.mean()), float(found.std(ddof=1) / np.sqrt(count)), count, size)


def _kernel(x: Array, y: Array | None = None) -> Array:
    other = x if y is None else y
    inner = x @ other.T / x.shape[1] + 1
    return np.asarray(inner * inner * inner)
