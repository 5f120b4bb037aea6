"""The inception score, from sums that are taken while images pass by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdiff.evaluation.moments import Array
from fastdiff.process.arguments import spelt

__all__ = ["InceptionScore", "ScoreSums"]

SPLITS = 10


@dataclass(frozen=True)
class InceptionScore:
    """exp of the information that an image carries about its class: 1 to the number of classes.

    Attributes:
        value: Mean over the splits.
        deviation: Standard deviation over the splits, as papers give it.
    """

    value: float
    deviation: float


class ScoreSums:
    """Sums of class probabilities and of their negative entropies, by split; a set is never held as a whole.

    Args:
        num: Images in all. Which split an image belongs to is drawn once, by a generator of this seed.
        splits: Parts that the score is taken of.
        seed: As above.

    Raises:
        ValueError: fewer images than splits.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 4.
    """

    def __init__(self, num: int, *, splits: int = SPLITS, seed: int = 0) -> None:
        if num < splits:
            raise ValueError(
                f"{spelt('metrics', 'the metric')} is needs at least {splits} images, one for each split, got {num}"
            )
        self._split = np.random.default_rng(seed).permutation(num) % splits
        self._counts = np.bincount(self._split, minlength=splits)
        self._information = np.zeros(splits)
        self._probabilities: Array | None = None
        self._done = 0

    def add(self, logits: npt.ArrayLike) -> None:
        """The next images: logits [n, K], before the softmax."""
        rows = np.asarray(logits, dtype=np.float64)
        logs = rows - rows.max(axis=1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        probabilities = np.exp(logs)
        split = self._split[self._done : self._done + len(rows)]
        if self._probabilities is None:
            self._probabilities = np.zeros((len(self._counts), rows.shape[1]))
        np.add.at(self._probabilities, split, probabilities)
        np.add.at(self._information, split, (probabilities * logs).sum(axis=1))
        self._done += len(rows)

    def score(self) -> InceptionScore:
        """The score, once all images were added."""
        assert self._probabilities is not None
        assert self._done == len(self._split)
        means = self._probabilities / self._counts[:, None]
        # A class that no image has adds nothing.
        entropies = -(means * np.log(np.where(means > 0, means, 1.0))).sum(axis=1)
        scores = np.exp(self._information / self._counts + entropies)
        return InceptionScore(float(scores.mean()), float(scores.std()))
