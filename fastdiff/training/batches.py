"""The images of a step, as a function of (seed, step, place)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.source import ImageSource
from fastdiff.files.data import batch_indices, flip_mask
from fastdiff.process.noise import Stream, integers
from fastdiff.training.config import TrainConfig

__all__ = ["Batch", "Batches", "moved"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a step's batch.

    Attributes:
        images: As stored, [n, C, H, W], channels_last, on the network's device.
        labels: int64 [n], where the network takes them.
    """

    images: Tensor
    labels: Tensor | None


class Batches:
    """What each step sees of the data: which images, which of them mirrored, and which labels dropped.

    Args:
        data: The images.
        config: Settings.
        num_classes: Of the network; None where it takes no labels.
        device: Of the network.
    """

    def __init__(self, data: ImageSource, config: TrainConfig, num_classes: int | None, device: torch.device) -> None:
        self.data = data
        self.config = config
        self.num_classes = num_classes
        self.device = device

    def at(self, step: int, places: NDArray[np.int64]) -> Batch:
        """The images at some places of a step's batch, int64 [n] in 0..batch_size-1."""
        config = self.config
        index = batch_indices(len(self.data), config.batch_size, step, config.seed)[places]
        images = self.data.read(index)
        if config.flip:
            mirrored = torch.from_numpy(flip_mask(config.batch_size, step, config.seed)[places]).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        images = moved(images.contiguous(memory_format=torch.channels_last), self.device)
        return Batch(images, self._labels(step, places, index))

    def _labels(self, step: int, places: NDArray[np.int64], index: NDArray[np.int64]) -> Tensor | None:
        config = self.config
        if self.num_classes is None or self.data.labels is None:
            return None
        labels = moved(self.data.labels[torch.from_numpy(index).to(self.data.labels.device)], self.device)
        if config.label_dropout:
            draws = integers(config.seed, places, 1 << 32, Stream.LABEL_DROPOUT, step)
            dropped = moved(torch.from_numpy(draws < config.label_dropout * 2.0**32), self.device)
            labels = labels.masked_fill(dropped, self.num_classes - 1)
        return labels


def moved(values: Tensor, device: torch.device) -> Tensor:
    """On a device; a GPU copies while the host goes on, which pageable memory does not allow."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
