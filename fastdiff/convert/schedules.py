"""Recognising noise schedules by their betas."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastdiff.schedule import Array, NoiseSchedule

__all__ = ["recognise_schedule"]


def recognise_schedule(betas: Array, names: Iterable[str], *, rtol: float = 0.0) -> NoiseSchedule | None:
    """The first named schedule of that length whose betas these are, to a relative tolerance; None for none."""
    for name in names:
        try:
            named = NoiseSchedule.named(name, len(betas))
        except ValueError:
            # Ho's linear schedule does not exist for T of 20 and less.
            continue
        if np.allclose(named.betas, betas, rtol=rtol, atol=0.0):
            return named
    return None
