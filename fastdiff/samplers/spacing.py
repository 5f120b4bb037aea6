"""Which timesteps a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, whole_number

Spacing = Literal["leading", "trailing", "linspace", "quad"]
SPACINGS: tuple[str, ...] = get_args(Spacing)


def spaced_indices(
    num_timesteps: int,
    steps: int | None = None,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
) -> list[int]:
    """The chosen timesteps, strictly increasing, each in [0, T).

    Args:
        num_timesteps: T.
        steps: How many to choose, 1 to T; None means all T (or as many as `timesteps` has).
        spacing: "trailing" counts down from T-1 in strides of T / steps, so that sampling starts where the training
            ended (the default; Lin et al. 2023, arXiv:2305.08891); "leading" counts up from 0 in strides of
            floor(T / steps), as DDIM and diffusers do; "linspace" runs evenly from 0 to T-1; "quad" is dense near 0,
            (linspace(0, sqrt(0.8 T)))^2 (Song, Meng, Ermon 2021, appendix D.2).
        timesteps: The timesteps themselves, in either strict order; `spacing` is then not used.

    Raises:
        ValueError: steps outside 1..T, an unknown spacing, or timesteps that are not strictly monotone or out of range.
    """
    if timesteps is not None:
        return _explicit(num_timesteps, steps, timesteps)
    steps = num_timesteps if steps is None else steps
    steps = whole_number(spelt("steps"), steps, low=1, high=num_timesteps)
    if spacing == "trailing":
        # Rounded half to even, as diffusers does.
        chosen = np.round(np.arange(steps, 0, -1) * (num_timesteps / steps)).astype(np.int64)[::-1] - 1
    elif spacing == "leading":
        chosen = np.arange(steps) * (num_timesteps // steps)
    elif spacing == "linspace":
        chosen = (
            np.round(np.linspace(0, num_timesteps - 1, steps)).astype(np.int64)
            if steps > 1
            else np.array([num_timesteps - 1])
        )
    elif spacing == "quad":
        chosen = strictly_increasing(
            (np.linspace(0, math.sqrt(0.8 * num_timesteps), steps) ** 2).astype(np.int64), num_timesteps
        )
    else:
        raise ValueError(f"unknown spacing {spacing!r}: {nearest_name(spacing, SPACINGS)}")
    return [int(t) for t in chosen]


def strictly_increasing(chosen: npt.NDArray[np.int64], num_timesteps: int) -> npt.NDArray[np.int64]:
    """Move repeated steps up to the next free one, and back below T where that runs over."""
    offsets = np.arange(chosen.size)
    chosen = np.maximum.accumulate(chosen - offsets) + offsets
    return np.asarray(np.minimum(chosen, num_timesteps - chosen.size + offsets))


def _explicit(num_timesteps: int, steps: int | None, timesteps: Sequence[float]) -> list[int]:
    chosen = np.asarray(timesteps)
    if chosen.ndim != 1 or chosen.size == 0 or not (chosen == np.round(chosen)).all():
        raise ValueError("timesteps must be a non-empty list of whole numbers")
    if steps is not None and steps != chosen.size:
        raise ValueError(f"steps = {steps} disagrees with the {chosen.size} timesteps given: leave one of them out")
    chosen = chosen.astype(np.int64)
    if chosen.size > 1 and chosen[0] > chosen[-1]:
        chosen = chosen[::-1]
    if (np.diff(chosen) <= 0).any():
        raise ValueError(f"timesteps must be strictly monotone, got {list(timesteps)[:8]}")
    if chosen[0] < 0 or chosen[-1] >= num_timesteps:
        raise ValueError(f"timesteps must be in [0, {num_timesteps}), got {int(chosen[0])} to {int(chosen[-1])}")
    return [int(t) for t in chosen]
