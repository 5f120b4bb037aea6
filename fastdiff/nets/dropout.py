"""Dropout of the networks here: from PyTorch's generator, or keyed by seed, step and image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.process.noise import Stream, words

__all__ = ["Dropout", "DropoutDraws", "keyed_dropout"]


class DropoutDraws:
    """What the masks of a network's dropouts are functions of. Tensors alone, so that compiled networks take new ones.

    Attributes:
        seeds: int64 [layers], one for each dropout of the network.
        sample_ids: int64 [B], one for each image of the batch.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.seeds = torch.zeros(num_layers, dtype=torch.int64, device=device)
        self.sample_ids = torch.zeros(0, dtype=torch.int64, device=device)

    def at(self, seed: int, step: int, places: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """Let the next batch have the masks of these images in this step, whatever batch they are in.

        Args:
            seed: In [0, 2^64).
            step: In [0, 2^28).
            places: [B] numbers of the images in the step's whole batch, in [0, 2^63).
        """
        low, high = words(seed, np.arange(len(self.seeds)), 2, Stream.DROPOUT, step).astype(np.uint64).T
        self.seeds = self._moved((low | high << np.uint64(32)).view(np.int64))
        self.sample_ids = self._moved(np.array(places, dtype=np.int64))

    def _moved(self, values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        tensor = torch.from_numpy(values)
        device = self.seeds.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Dropout(nn.Dropout):
    """Dropout by the op `dropout`, from its draws or, on the CPU and without any, a seed of PyTorch's generator.

    Attributes:
        draws: What masks are drawn from in training; None for PyTorch's generator.
        layer: Its number among the network's dropouts, which counts with draws.
    """

    draws: DropoutDraws | None = None
    layer: int = 0

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape, [B, ...]."""
        if not self.training or self.p == 0:
            return super().forward(x)
        if self.draws is not None:
            seed = self.draws.seeds[self.layer : self.layer + 1]
            return ops.dropout(x, self.p, seed, sample_ids=self.draws.sample_ids)
        if x.device.type != "cpu" or not ops.has_extension():
            return super().forward(x)
        return ops.dropout(x, self.p, torch.empty(1, dtype=torch.int64).random_())


def keyed_dropout(network: nn.Module) -> DropoutDraws:
    """Give all `Dropout`s of a network draws in common, and a number each, in the order of its modules.

    Returns:
        The draws, on the device of the network's first parameter. Call `at` before each batch in training mode.
    """
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    parameter = next(network.parameters(), None)
    draws = DropoutDraws(len(layers), torch.device("cpu") if parameter is None else parameter.device)
    for number, layer in enumerate(layers):
        layer.draws, layer.layer = draws, number
    return draws
