"""Who gets the slots of the next evaluation: a fair share for each request, the oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Claimant", "deal", "deal_to_both"]


class Claimant(Protocol):
    """Somebody who wants slots."""

    def claim(self, slots: int) -> int:
        """Take one piece of what it wants, of at most so many slots; how many it took, 0 for nothing more."""


C = TypeVar("C", bound=Claimant)


def deal(claimants: Iterable[C], slots: int) -> int:
    """Deal slots out in turns.

    In each round everyone takes a piece, in their order, until the slots are gone or nobody wants more. So the first
    always goes on, somebody who wants much does not keep out those who want little, and nobody waits for a slot that
    is free.

    Args:
        claimants: In the order in which they are served.
        slots: How many there are.

    Returns:
        How many were taken.
    """
    turns, left = deque(claimants), slots
    while turns and left:
        claimant = turns.popleft()
        if taken := claimant.claim(left):
            left -= taken
            turns.append(claimant)
    return slots - left


def deal_to_both(large: Sequence[C], small: Sequence[C], everyone: Iterable[C], slots: int) -> int:
    """Deal to those who want much and to those who want little: half of the slots at least to each, where wanted.

    So many large ones in front do not keep the small ones waiting, nor the other way round. What one half has no use
    for goes to everyone in their order.

    Args:
        large, small: Each in the order in which they are served.
        everyone: Both, in that order.
        slots: How many there are.

    Returns:
        How many were taken.
    """
    taken = 0
    if large and small:
        taken = deal(large, slots // 2)
        taken += deal(small, slots - taken)
    return taken + deal(everyone, slots - taken)
