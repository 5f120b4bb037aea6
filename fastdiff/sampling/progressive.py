"""Sampling that keeps the predicted image on its way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.choose import Runner
from fastdiff.nets.model import Model
from fastdiff.process.checks import whole_number
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.callbacks import SamplingStep
from fastdiff.sampling.runner import sample

__all__ = ["Progress", "progressive"]


@dataclass(frozen=True, eq=False)
class Progress:
    """Samples, and what the network took them for on the way.

    Attributes:
        samples: [B, C, ...], as `sample` gives them.
        rows: The table's rows that the previews are of, ascending.
        times: The network's t of each.
        previews: [R, B, C, ...] the predicted x_0 at each of these rows.
    """

    samples: Tensor
    rows: list[int]
    times: list[float]
    previews: Tensor


def progressive(
    model: Model,
    table: CoefficientTable,
    *,
    shape: tuple[int, ...],
    rows: int | Sequence[int] = 8,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    x_init: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    runner: Runner = "auto",
) -> Progress:
    """Sample, and keep the predicted x_0 of chosen rows.

    Args:
        model: Any callable; see `fastdiff.sample`.
        table: The sampler.
        shape: [B, C, ...] of the samples.
        rows: Rows of the table that evaluate the network, or how many of them, evenly from the first to the last.
        seed: In [0, 2^64).
        sample_ids: One whole number per sample; 0..B-1 when None.
        x_init: See `fastdiff.sample`.
        model_kwargs: Passed to the model at each call.
        runner: See `fastdiff.sample`.

    Raises:
        ValueError: rows that the table has not, or a table that predicts noise rather than x_0.

    Source: Ho et al. (2020), arXiv:2006.11239, section 4.3, progressive generation.
    """
    if not table.data_prediction:
        raise ValueError(
            f"the table of {table.name!r} predicts noise, so it has no previews: take one that predicts x0"
        )
    chosen = _chosen_rows(table, rows)
    previews: dict[int, Tensor] = {}

    def keep(step: SamplingStep) -> None:
        if step.row in chosen:
            assert step.prediction is not None
            previews[step.row] = step.prediction.clone()

    samples = sample(
        model, table, shape=shape, seed=seed, sample_ids=sample_ids, x_init=x_init, model_kwargs=model_kwargs,
        runner=runner, progress=False, callback=keep,
    )  # fmt: skip
    return Progress(samples, chosen, [float(table["t"][row]) for row in chosen], torch.stack([*previews.values()]))


def _chosen_rows(table: CoefficientTable, rows: int | Sequence[int]) -> list[int]:
    able = [row for row in range(len(table)) if table["evaluate"][row]]
    if isinstance(rows, int):
        count = min(whole_number("rows", rows, low=1), len(able))
        return sorted({able[round(i * (len(able) - 1) / max(1, count - 1))] for i in range(count)})
    chosen = sorted({int(row) for row in rows})
    if not chosen or not set(chosen) <= set(able):
        raise ValueError(
            f"rows must be among the table's rows with an evaluation, 0..{len(table) - 1}, got {list(rows)}"
        )
    return chosen
