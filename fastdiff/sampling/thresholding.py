"""Dynamic thresholding: between the model and the step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.process.table import CoefficientTable


@dataclass(frozen=True)
class DynamicThreshold:
    """Clamp each sample's predicted x_0 to its own quantile of magnitudes, and divide by that, where it is above 1.

    Attributes:
        ratio: The quantile, in (0, 1].
        max_value: Largest bound taken, at least 1; what is above is clamped as well. None for no limit.

    Raises:
        ValueError: an option out of range.

    Source: Saharia et al. (2022), arXiv:2205.11487, section 2.3 and appendix E.
    """

    ratio: float = 0.995
    max_value: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {self.ratio!r}")
        if self.max_value is not None and not self.max_value >= 1:
            raise ValueError(f"max_value must be at least 1, got {self.max_value!r}")

    def threshold(self, x0: Tensor) -> Tensor:
        """The thresholded images, [B, ...] in [-1, 1], from predictions of x_0."""
        if x0[0:1].numel() == 0 or x0.shape[0] == 0:
            return x0
        bound = torch.quantile(x0.detach().abs().flatten(1).float(), self.ratio, dim=1).clamp(min=1, max=self.max_value)
        bound = bound.to(x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -bound), bound) / bound

    def apply(self, table: CoefficientTable, row: int, x: Tensor, model_output: Tensor) -> Tensor:
        """The model's output that stands for the thresholded x_0 in a row of a table with data predictions.

        Args:
            table: The sampler.
            row: The row about to be executed.
            x: State [B, C, ...].
            model_output: [B, C or 2C, ...]; a second half is passed on.

        Raises:
            ValueError: the row's prediction is not x_0.
        """
        px, pm = float(table["px"][row]), float(table["pm"][row])
        if pm == 0 or not table.data_prediction:
            raise ValueError(f"table {table.name!r} does not predict x_0 in row {row}, so it cannot be thresholded")
        channels = x.shape[1]
        x0 = self.threshold(px * x + pm * model_output[:, :channels].to(x.dtype))
        changed = (x0 - px * x) / pm
        return torch.cat([changed, model_output[:, channels:].to(x.dtype)], dim=1)
