"""The images of a step, as a function of (seed, step, place)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.reading import Key, ReadAhead
from fastdiff.data.source import ImageSource
from fastdiff.files.data import DataScaling, batch_indices, flip_mask
from fastdiff.process.noise import Stream, integers, words
from fastdiff.training.augmentation import Transforms
from fastdiff.training.config import TrainConfig

__all__ = ["Batch", "Batches", "moved"]

AHEAD = 2
"""Requests that are read ahead."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a step's batch.

    Attributes:
        images: As stored, or in [-1, 1] where they are augmented; [n, C, H, W], channels_last, on the network's device.
        labels: int64 [n], where the network takes them.
        augment: float32 [n, 9], the labels of the augmentation; None without.
    """

    images: Tensor
    labels: Tensor | None
    augment: Tensor | None = None

    def in_model(self, scaling: DataScaling) -> Tensor:
        """The images in [-1, 1]."""
        return self.images if self.augment is not None else scaling.to_model(self.images)


class Batches:
    """What each step sees of the data: which images, cut where, mirrored or augmented how, and which labels dropped.

    The requests of a step are expected to be those of the step before: the next ones are read while the present one is
    used.

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
        self._reader = ReadAhead(data)
        self._last: tuple[int, NDArray[np.int64]] | None = None
        # What was asked for after the same places: how many steps later, and which places.
        self._next: dict[bytes, tuple[int, NDArray[np.int64]]] = {}

    def at(self, step: int, places: NDArray[np.int64]) -> Batch:
        """The images at some places of a step's batch, int64 [n] in 0..batch_size-1."""
        config = self.config
        index = self._indices(step, places)
        images = self._read(step, places)
        if config.flip:
            mirrored = torch.from_numpy(flip_mask(config.batch_size, step, config.seed)[places]).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        images = moved(images.contiguous(memory_format=torch.channels_last), self.device)
        labels = self._labels(step, places, index)
        if not config.augment:
            return Batch(images, labels)
        transforms = Transforms.drawn(config.augment, config.seed, step, places)
        told = moved(torch.from_numpy(transforms.labels()).float(), self.device)
        return Batch(transforms.of(self.data.scaling.to_model(images)), labels, told)

    def _read(self, step: int, places: NDArray[np.int64]) -> Tensor:
        """Images as stored, while the ones behind them are begun."""
        if not self.data.workers:
            return self.data.read(self._indices(step, places), self._draws(step, places))
        if self._last is not None:
            self._next[self._last[1].tobytes()] = (step - self._last[0], places)
        self._last = (step, places)
        wanted: list[Key] = []
        at, following = step, places
        for _ in range(1 + AHEAD):
            wanted.append((at, following.tobytes()))
            self._reader.start(wanted[-1], self._indices(at, following), self._draws(at, following))
            if following.tobytes() not in self._next:
                break
            later, following = self._next[following.tobytes()]
            at += later
            if at < 0:
                break
        self._reader.forget(wanted)
        return self._reader.read(wanted[0], self._indices(step, places), self._draws(step, places))

    def _indices(self, step: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which images stand at some places of a step's batch."""
        return batch_indices(len(self.data), self.config.batch_size, step, self.config.seed)[places]

    def _draws(self, step: int, places: NDArray[np.int64]) -> NDArray[np.uint32] | None:
        """The words that say where they are cut."""
        num = self.data.num_draws
        return words(self.config.seed, places, num, Stream.CROP, step) if num else None

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
