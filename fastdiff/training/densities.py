"""How often each timestep is trained on, as probabilities [T], and the draws from them. NumPy float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream, words
from fastdiff.process.schedule import Array

__all__ = ["LossHistory", "draw", "importance", "log_normal"]


def log_normal(diffusion: Diffusion, mean: float = -1.2, std: float = 1.2) -> Array:
    """EDM's noise levels: ln sigma ~ N(mean, std^2), each draw taken to the timestep whose ln sigma is nearest.

    Args:
        diffusion: What the network is trained on; its levels are sigma = sqrt((1 - abar) / abar).
        mean: Of ln sigma; -1.2 in the paper, for data with a standard deviation of 0.5.
        std: Above 0; 1.2 in the paper.

    Returns:
        Probabilities [T]. Levels beyond those of the process count for its first and last timestep; a timestep without
        signal, whose sigma is infinite, has none.

    Source: Karras et al. (2022), arXiv:2206.00364, table 1 and section 5.
    """
    log_sigma = -0.5 * diffusion.schedule.log_snr
    edges = np.concatenate([[-np.inf], (log_sigma[1:] + log_sigma[:-1]) / 2, [np.inf]])
    units = ((edges - mean) / std).tolist()
    return np.array([_between(low, high) for low, high in itertools.pairwise(units)])


def _between(low: float, high: float) -> float:
    """The probability that a standard normal number lies between, to full relative precision in both tails."""
    if low > 0:
        low, high = -high, -low
    return 0.5 * (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2)))


def draw(probabilities: Array, seed: int, step: int, places: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Timesteps of a training step, each a function of (seed, step, place).

    Args:
        probabilities: [T], at least 0, of any positive sum.
        seed: Of the training, in [0, 2^64).
        step: In [0, 2^28).
        places: [n] places in the step's batch.

    Returns:
        int64 [n] in [0, T): the inverse of the distribution at 53 bits of the noise contract's words. A timestep of
        probability 0 is never drawn.
    """
    bits = words(seed, places, 2, Stream.TRAIN_TIME, step).astype(np.uint64)
    uniform = ((bits[:, 0] << np.uint64(21)) | (bits[:, 1] >> np.uint64(11))) * 2.0**-53
    cumulative = np.cumsum(probabilities)
    # Its end is exactly 1, and so above each uniform number.
    return np.searchsorted(cumulative / cumulative[-1], uniform, side="right").astype(np.int64)


def importance(probabilities: Array) -> Array:
    """1 / (T p), [T], for probabilities of any positive sum: a draw's loss times it has the mean of a uniform draw.

    Infinite where p is 0, which is never drawn.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(probabilities.sum() / (len(probabilities) * probabilities))


class LossHistory:
    """The last losses of each timestep, and the density that follows from them.

    Args:
        num_timesteps: T.
        length: Losses that are kept of each timestep.
        uniform: Share of the density that stays uniform, in [0, 1].

    Attributes:
        losses: float64 [T, length], oldest first.
        counts: int64 [T], how many of them there are.

    Source: Nichol and Dhariwal (2021), arXiv:2102.09672, section 3.3.
    """

    def __init__(self, num_timesteps: int, length: int = 10, uniform: float = 0.001) -> None:
        self.losses = np.zeros((num_timesteps, length))
        self.counts = np.zeros(num_timesteps, dtype=np.int64)
        self.uniform = uniform

    @property
    def is_full(self) -> bool:
        """Whether each timestep has all its losses; before that, the density is uniform."""
        return bool((self.counts == self.losses.shape[1]).all())

    def append(self, timesteps: Iterable[int], losses: Iterable[float]) -> None:
        """Take in losses in their order; the oldest of a full history falls out."""
        length = self.losses.shape[1]
        for t, loss in zip(timesteps, losses, strict=True):
            if self.counts[t] == length:
                self.losses[t, :-1] = self.losses[t, 1:]
                self.losses[t, -1] = loss
            else:
                self.losses[t, self.counts[t]] = loss
                self.counts[t] += 1

    def density(self) -> Array:
        """Weights [T] of positive sum: mostly the root mean squares, once each timestep has its history."""
        weights = np.sqrt(np.mean(self.losses**2, axis=-1))
        total = weights.sum()
        if not self.is_full or total == 0:
            return np.ones(len(self.counts))
        return np.asarray(weights / total * (1 - self.uniform) + self.uniform / len(weights))
