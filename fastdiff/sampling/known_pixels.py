"""Known pixels: what inpainting holds fixed while a sampler runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.process.noise import Stream
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.seeds import Seeds

__all__ = ["Known", "checked_mask"]


@dataclass(frozen=True, eq=False)
class Known:
    """Pixels that are known, which `sample` puts back after each row, noised to the level of the state.

    Attributes:
        image: [B, C, ...] in [-1, 1], of the sample's shape.
        mask: Of a shape that broadcasts to the image's, boolean or 0 and 1: true where a pixel is known and kept.
    """

    image: Tensor
    mask: Tensor


class KnownPixels:
    """`Known`, checked against a table and a state.

    Args:
        known: What is known.
        table: The sampler, which must say what levels it visits.
        x: The state, [B, C, ...].
        ids: Sample ids [B].
        seeds: Of all samples, or of each.

    Attributes:
        image: [B, C, ...], of the state's type and memory format.
        mask: Booleans, likewise.
        levels: [R, 4], for each row what `ops.diffuse` makes of the image.

    Raises:
        ValueError: shapes or values that do not fit, or a table without levels.
    """

    def __init__(self, known: Known, table: CoefficientTable, x: Tensor, ids: Tensor, seeds: Seeds) -> None:
        if known.image.shape != x.shape or not known.image.is_floating_point():
            raise ValueError(
                f"the known image must be floating point {list(x.shape)}, got {known.image.dtype} "
                f"{list(known.image.shape)}"
            )
        alphas, sigmas = np.asarray(table.alphas), np.asarray(table.sigmas)
        if alphas.size == 0:
            raise ValueError(
                f"the table of {table.name!r} does not say which levels it visits, so known pixels cannot join"
            )
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        self.image = known.image.to(x.device, x.dtype).contiguous(memory_format=layout)
        self.mask = checked_mask(known.mask, x).to(x.device)
        zeros = np.zeros_like(alphas)
        levels = np.stack([alphas, sigmas, zeros, zeros], axis=1)[1:]
        self.levels = torch.tensor(levels, dtype=x.dtype, device=x.device)
        self._ids, self._seeds = ids, seeds

    def put_back(self, x: Tensor, row: int) -> None:
        """Overwrite the known pixels of the state after row `row`, in place."""

        def draw(seed: int, places: Tensor | slice) -> Tensor:
            image, ids = self.image[places], self._ids[places]
            at = torch.full((len(ids),), row, dtype=torch.int64, device=x.device)
            return ops.diffuse(
                image, at, self.levels, seed=seed, sample_ids=ids, row=row, stream=Stream.KNOWN, target=False
            )[0]

        noised = self._seeds.drawn(self.image, draw)
        x.copy_(torch.where(self.mask, noised, x))


def checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as booleans of x's shape. Raises TypeError or ValueError for one that does not fit."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"the mask must be a torch.Tensor, got {type(mask).__name__}")
    try:
        broadcast = mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"the mask must have the images' shape {list(x.shape)}, or one that broadcasts to it such as "
            f"{list(x.shape[-2:])} or {[x.shape[0], 1, *x.shape[2:]]}, got {list(mask.shape)}"
        ) from None
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("the mask must be boolean, or hold 0 (to be filled) and 1 (known) alone")
    return broadcast.to(torch.bool)
