"""EDM's geometric augmentation, whose labels the network is told, so that it does not leak into samples.

Images are mirrored, scaled, rotated, stretched and moved; a network that is given all labels as 0 draws images as they
are. Every number is a function of (seed, step, place).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.process.noise import Stream, words

__all__ = ["NUM_LABELS", "Transforms"]

NUM_LABELS = 9
"""Entries of the labels: mirrored in x, in y; scale; rotation (cos - 1, sin); stretch (cos, sin); move in x, in y."""

# Standard deviations: of log2 of the scale, of log2 of the stretch, and of the move as a share of the image.
_SCALE_STD, _STRETCH_STD, _MOVE_STD = 0.2, 0.2, 0.125
# How often the axes of a stretch are turned.
_TURNED = 0.5
_NUM_WORDS = 16

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transforms:
    """What is done to n images, in this order.

    Attributes:
        mirrored: [n, 2] 0 or 1, in x and in y.
        scale: [n] log2 of the scale, in standard deviations.
        angle: [n] of the rotation, in radians.
        stretch: [n] log2 of the stretch along one axis, and of the squeeze along the other, in standard deviations.
        axes: [n] by which those axes are turned, in radians.
        moves: [n, 2] in x and y, in standard deviations.

    Source: Karras et al. (2022), arXiv:2206.00364, appendix F.2, and their code's `AugmentPipe`; the transforms: Karras
    et al. (2020), arXiv:2006.06676, appendix B.
    """

    mirrored: Array
    scale: Array
    angle: Array
    stretch: Array
    axes: Array
    moves: Array

    @classmethod
    def drawn(cls, share: float, seed: int, step: int, places: NDArray[np.int64]) -> Transforms:
        """Those of the images at some places of a step's batch.

        Args:
            share: How often each is done, in [0, 1], but for mirroring in x, which is half of the time.
            seed: In [0, 2^64).
            step: In [0, 2^28).
            places: [n] in the batch.
        """
        u = (words(seed, places, _NUM_WORDS, Stream.AUGMENT, step).astype(np.float64) + 0.5) * 2.0**-32
        # A pair of normals of the last two.
        quarter = np.array([0.0, 0.0, 0.0, 0.25])
        normal = np.sqrt(-2 * np.log(u[:, [0, 2, 4, 4]])) * np.cos(2 * np.pi * (u[:, [1, 3, 5, 5]] - quarter))
        done = u[:, 6:11] < share
        return cls(
            mirrored=np.stack([u[:, 11] < 0.5, (u[:, 12] < 0.5) & done[:, 0]], axis=1).astype(np.float64),
            scale=normal[:, 0] * done[:, 1],
            angle=np.pi * (2 * u[:, 13] - 1) * done[:, 2],
            stretch=normal[:, 1] * done[:, 3],
            axes=np.pi * (2 * u[:, 14] - 1) * (u[:, 15] < _TURNED),
            moves=normal[:, 2:] * done[:, 4:],
        )

    def labels(self) -> Array:
        """[n, 9], see `NUM_LABELS`; 0 where nothing is done."""
        columns = [self.scale, np.cos(self.angle) - 1, np.sin(self.angle)]
        columns += [self.stretch * np.cos(self.axes), self.stretch * np.sin(self.axes)]
        return np.concatenate([self.mirrored, np.stack(columns, axis=1), self.moves], axis=1)

    def of(self, images: Tensor) -> Tensor:
        """The images, transformed.

        Values between pixels are bicubic, and those from outside are the image reflected at its edges; EDM's code has
        wavelet filters there. Images that are mirrored at most keep their values.

        Args:
            images: [n, C, H, W], floating.

        Returns:
            Of the same shape and type, channels_last.
        """
        mirrored = torch.from_numpy(self.mirrored > 0).to(images.device)[:, :, None, None, None]
        images = torch.where(mirrored[:, 0], images.flip(-1), images)
        images = torch.where(mirrored[:, 1], images.flip(-2), images)
        others = np.stack([self.scale, self.angle, self.stretch, *self.moves.T], axis=1)
        moved = np.flatnonzero((others != 0).any(axis=1))
        if moved.size:
            place = torch.from_numpy(moved).to(images.device)
            sources = torch.from_numpy(self._sources(*images.shape[2:])[moved]).to(images.device, images.dtype)
            chosen = images[place].contiguous()
            grid = torch.nn.functional.affine_grid(sources, list(chosen.shape), align_corners=False)
            found = torch.nn.functional.grid_sample(
                chosen, grid, mode="bicubic", padding_mode="reflection", align_corners=False
            )
            images = images.index_copy(0, place, found)
        return images.contiguous(memory_format=torch.channels_last)

    def _sources(self, height: int, width: int) -> Array:
        """[n, 2, 3] where a pixel of the result comes from, both in [-1, 1] over the image."""
        scale, along = np.exp2(_SCALE_STD * self.scale), np.exp2(_STRETCH_STD * self.stretch)
        # From the centre in pixels, y down. What is done first is undone last.
        source = _diagonal(1 / scale, 1 / scale) @ _rotation(self.angle)
        source = source @ _rotation(-self.axes) @ _diagonal(1 / along, along) @ _rotation(self.axes)
        shift = -(source @ (self.moves * _MOVE_STD * [width, height])[:, :, None])
        half = np.array([width, height]) / 2
        return np.concatenate([source * half / half[:, None], shift / half[:, None]], axis=2)


def _rotation(angle: Array) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)


def _diagonal(first: Array, second: Array) -> Array:
    found = np.zeros((first.size, 2, 2))
    found[:, 0, 0], found[:, 1, 1] = first, second
    return found
