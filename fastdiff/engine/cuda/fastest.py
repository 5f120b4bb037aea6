"""Of several ways to compute the same the fastest, measured once per shape and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

__all__ = ["fastest"]

# Launches that are timed together, and how often; the least counts.
REPEATS = 20
ROUNDS = 3
_chosen: dict[Hashable, int] = {}


def fastest(key: Hashable, ways: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """The way that takes least time on the current GPU; the first without one.

    Args:
        key: What the choice is kept under: all that the ways' times depend on, for this process.
        ways: Each computes the same from and into memory of its own. They are run, but not while a graph is captured,
            for which the choice must have been made before.
    """
    if len(ways) == 1 or not torch.cuda.is_available():
        return ways[0]
    if key not in _chosen:
        times = [_time(way) for way in ways]
        _chosen[key] = times.index(min(times))
    return ways[_chosen[key]]


def _time(way: Callable[[], None]) -> float:
    """Milliseconds of one run, of many that are queued before the first begins."""
    way()
    least = float("inf")
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        # Long enough that the queue is full when the clock starts: the host's part must not count.
        torch.cuda._sleep(2_000_000)
        start.record()
        for _ in range(REPEATS):
            way()
        end.record()
        end.synchronize()
        least = min(least, start.elapsed_time(end) / REPEATS)
    return least
