"""What a run of a sampler tells those who look on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["SamplingStep"]


@dataclass(frozen=True)
class SamplingStep:
    """What a callback is given after each row.

    Attributes:
        row: The row just executed, 0-based.
        num_rows: Rows of the table.
        t: The row's timestep, as the network sees it.
        x: The state after the row, [B, C, ...]. It is overwritten by the next row: clone it to keep it.
        prediction: The predicted x_0, clipped (the predicted noise where the table's `data_prediction` is False),
            [B, C, ...]; None for a row without an evaluation. Clone it to keep it.
    """

    row: int
    num_rows: int
    t: float
    x: Tensor
    prediction: Tensor | None
