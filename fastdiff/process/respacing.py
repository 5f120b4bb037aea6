"""Which timesteps a respaced schedule keeps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["respaced_indices"]


def respaced_indices(num_timesteps: int, spec: str | int | Iterable[int]) -> list[int]:
    """The steps that a respacing keeps; see `NoiseSchedule.respace`."""
    if isinstance(spec, str) and spec.startswith("ddim"):
        count = _count_in(spec[4:], spec)
        if not 1 <= count <= num_timesteps:
            raise ValueError(f"ddimN keeps N of the T = {num_timesteps} timesteps, so N must be in [1, T], got {count}")
        # OpenAI's rule is the stride that gives exactly N; most N have none, and then floor(T / N) is taken.
        exact = (s for s in range(1, num_timesteps + 1) if len(range(0, num_timesteps, s)) == count)
        stride = next(exact, num_timesteps // count)
        return list(range(0, num_timesteps, stride))[:count]
    if isinstance(spec, str):
        counts = [_count_in(part, spec) for part in spec.split(",")]
    elif isinstance(spec, int | np.integer):
        counts = [int(spec)]
    else:
        counts = [int(count) for count in spec]
    if not counts:
        raise ValueError("a respacing needs at least one section")
    base, extra = divmod(num_timesteps, len(counts))
    start = 0
    chosen: list[int] = []
    for i, count in enumerate(counts):
        size = base + (1 if i < extra else 0)
        if not 1 <= count <= size:
            raise ValueError(
                f"section {i} of the respacing has {size} timesteps, so it can keep 1 to {size}, got {count}"
            )
        gap = (size - 1) / (count - 1) if count > 1 else 1.0
        chosen += [start + round(gap * k) for k in range(count)]
        start += size
    return chosen


def _count_in(text: str, spec: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"cannot read the respacing {spec!r}: expected '250', '10,15,20' or 'ddim25'") from None
