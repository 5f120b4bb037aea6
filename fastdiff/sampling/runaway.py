"""Samples that run away: noticed at the end of a run, and said once, with the row where it began."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch
from torch import Tensor

from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.callbacks import SamplingStep

# Root mean square of a sample: noise has 1, images in [-1, 1] at most 1, standardised data about 1.
LARGEST_RMS = 5.0

_logger = logging.getLogger("fastdiff")
_said: set[str] = set()


class RanAway(Exception):
    """Ends a run whose row was found."""


class RowWatch:
    """A callback that stops at the first row that leaves a sample NaN or too large.

    Attributes:
        row: That row; None while there was none.
    """

    def __init__(self, table: CoefficientTable) -> None:
        # A table may begin with a larger state than 1, which is then no sign of anything.
        self.largest = LARGEST_RMS * max(1.0, table.init_scale)
        self.row: int | None = None

    def __call__(self, step: SamplingStep) -> None:
        if runs_away(step.x, self.largest):
            self.row = step.row
            raise RanAway


def runs_away(x: Tensor, largest: float = LARGEST_RMS) -> bool:
    """Whether a sample of x [B, ...] holds NaN or infinity, or has a root mean square above `largest`."""
    if x.numel() == 0:
        return False
    # NaN and infinity fail the comparison too.
    return not bool(torch.linalg.vector_norm(x.flatten(1), dim=1).max() <= largest * (x[0].numel()) ** 0.5)


def first_time(table: CoefficientTable) -> bool:
    """Whether nothing was said of this sampler yet, in this process."""
    return table.name not in _said


def warn_of(table: CoefficientTable, x: Tensor, row: int | None) -> None:
    """Warn, and log, that the samples x of this table ran away in `row`, where known."""
    _said.add(table.name)
    message = f"samples of {table.name!r} {_how(x)}{'' if row is None else _where(table, row)}: {_advice(table, x)}"
    _logger.warning(message)
    # Who called `fastdiff.sample`.
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _how(x: Tensor) -> str:
    if not bool(torch.isfinite(x).all()):
        return "hold NaN or infinite values"
    return f"ran away, |x| up to {float(x.abs().max()):.3g}"


def _where(table: CoefficientTable, row: int) -> str:
    return f", from row {row} of {len(table)} on, t = {table['t'][row]:g}"


def _advice(table: CoefficientTable, x: Tensor) -> str:
    if bool(np.isinf(table["clip"]).all()):
        return (
            "nothing bounds the predicted image. Use 'dpmpp', 'unipc' or 'ddim', which clip it, more steps, or "
            "a start where there is more signal (lam_min, timesteps)"
        )
    return "check the network's weights, and that the process is the one that it was trained on"
