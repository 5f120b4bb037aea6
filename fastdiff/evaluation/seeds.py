"""Several sets of samples, of one seed each: the least and the spread of every number, as EDM reports FID of three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Spread", "over_seeds"]


@dataclass(frozen=True)
class Spread:
    """One number of several sets.

    Attributes:
        least: The smallest.
        mean: Their mean.
        largest: The largest.
        spread: The largest less the smallest.
        num: Sets.
    """

    least: float
    mean: float
    largest: float
    spread: float
    num: int

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


def over_seeds(values: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """The spread of each number that all sets have; nothing of a single set.

    Source: Karras et al. (2022), arXiv:2206.00364, appendix F: the least FID of three sets of 50,000.
    """
    if len(values) < 2:
        return {}
    found = {}
    for name in values[0]:
        numbers = [one[name] for one in values if name in one]
        if len(numbers) == len(values):
            least, largest = min(numbers), max(numbers)
            found[name] = Spread(least, sum(numbers) / len(numbers), largest, largest - least, len(numbers))
    return found
