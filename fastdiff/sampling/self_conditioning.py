"""Self-conditioning: a network that is also given its last prediction of the image, row after row."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.nets.wrapped import plain_network
from fastdiff.process.table import CoefficientTable

__all__ = ["ARGUMENT", "SelfConditioning", "is_self_conditioned"]

ARGUMENT = "x_self_cond"
"""What a self-conditioned network calls it."""


def is_self_conditioned(model: Any, model_kwargs: Mapping[str, Any]) -> bool:
    """Whether a model is to be given its last predictions: it says so, and the caller gives none."""
    network = plain_network(model) if isinstance(model, nn.Module) else model
    return getattr(network, "self_condition", False) is True and ARGUMENT not in model_kwargs


class SelfConditioning:
    """The last prediction of the image, while a table is executed.

    It is the row's prediction, clipped where the table clips; where the table predicts the noise, x_0 follows from it
    and the level of the state. Before the first evaluation there is none, and the network takes zeros.

    Args:
        table: What is executed.

    Raises:
        ValueError: the table predicts noise, and does not say at which levels.

    Source: Chen, Zhang, Hinton (2023), arXiv:2208.04202, section 3 and algorithm 2.
    """

    def __init__(self, table: CoefficientTable) -> None:
        self._is_image = table.data_prediction
        self._alphas, self._sigmas = torch.tensor(table.alphas).tolist(), torch.tensor(table.sigmas).tolist()
        if not self._is_image and not self._alphas:
            raise ValueError(
                f"the network is self-conditioned, and the table of {table.name!r} predicts noise at levels that it "
                "does not say: take a sampler that predicts x0, such as ddim or ddpm"
            )
        self._last: Tensor | None = None

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the network is given beside the state."""
        return {} if self._last is None else {ARGUMENT: self._last.to(dtype)}

    def keep(self, row: int, x: Tensor, prediction: Tensor) -> None:
        """Remember a row's prediction, made from the state x that the row started at."""
        if self._is_image:
            self._last = prediction.clone()
        elif self._alphas[row] > 0:
            self._last = (x - self._sigmas[row] * prediction) / self._alphas[row]

    def part(self, some: slice) -> SelfConditioning:
        """The same for some of the samples."""
        part = copy.copy(self)
        part._last = None if self._last is None else self._last[some]
        return part
