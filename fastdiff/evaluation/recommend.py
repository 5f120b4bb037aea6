"""Which sampler to take for a budget of network evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number

__all__ = ["TOLERANCE", "Choice", "check_budget", "recommend"]

TOLERANCE = 0.02
"""Share of a distance that is no difference."""


class Tried(Protocol):
    """What is known of a sampler; `fastdiff.evaluation.comparison.Trial` is one."""

    @property
    def name(self) -> str:
        """The sampler."""
        ...

    @property
    def evaluations(self) -> int:
        """Of the network, an image."""
        ...

    @property
    def distance(self) -> float:
        """To the reference."""
        ...


@dataclass(frozen=True)
class Choice:
    """The sampler for a budget.

    Attributes:
        budget: Network evaluations an image, at most.
        name: The sampler.
        evaluations: How many of them it takes.
        distance: What it reaches.
    """

    budget: int
    name: str
    evaluations: int
    distance: float


def recommend(trials: Sequence[Tried], budget: int, tolerance: float = TOLERANCE) -> Choice:
    """The cheapest of those samplers within the budget that come as near as the nearest does, to a tolerance.

    Args:
        trials: What was tried.
        budget: Network evaluations an image, at most.
        tolerance: Share of the least distance that is no difference.

    Raises:
        ValueError: nothing that was tried is within the budget.
    """
    check_budget(budget, [one.evaluations for one in trials])
    within = [one for one in trials if one.evaluations <= budget]
    limit = min(one.distance for one in within) * (1 + tolerance)
    near = [one for one in within if one.distance <= limit]
    best = min(near, key=lambda one: (one.evaluations, one.distance))
    return Choice(budget, best.name, best.evaluations, best.distance)


def check_budget(budget: int | None, evaluations: Sequence[int]) -> None:
    """Raise ValueError unless something of so many evaluations is within the budget; None is no budget."""
    if budget is not None and whole_number(spelt("budget"), budget, low=1) < min(evaluations):
        raise ValueError(
            f"{spelt('budget')} must be at least {min(evaluations)}, the fewest evaluations tried, got {budget}"
        )
