"""Images that a network is given beside the noisy one, as further channels of its input."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.nets.model import Model
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, shown
from fastdiff.process.noise import Stream, words

__all__ = ["Concatenated", "ImageCondition"]

_FORM = re.compile(r"low_res:([1-9][0-9]{0,3})|inpaint")


@dataclass(frozen=True)
class ImageCondition:
    """What a network sees of an image beside its noisy version.

    Attributes:
        text: "low_res:2": the image at half its height and width (any whole factor from 2 up), scaled up again;
            "inpaint": the image with a hole, 0 inside of it, and a mask, 1 where the image is known.

    Raises:
        ValueError: another text.

    Source: low_res: Nichol and Dhariwal (2021), arXiv:2102.09672, and their code: means over squares, and bilinear;
    inpaint: Nichol et al. (2021), arXiv:2112.10741.
    """

    text: str

    def __post_init__(self) -> None:
        found = _FORM.fullmatch(self.text) if isinstance(self.text, str) else None
        if found is None or found[1] == "1":
            known = nearest_name(self.text, ["low_res:2", "inpaint"])
            raise ValueError(
                f"unknown {spelt('condition')} {shown(self.text)}: {known}; low_res takes any whole factor from 2 up"
            )

    @property
    def factor(self) -> int | None:
        """How much smaller the small image is; None for inpainting."""
        return int(self.text.partition(":")[2]) if self.text != "inpaint" else None

    def channels(self, image_channels: int) -> int:
        """Channels that it adds to those of the image."""
        return image_channels if self.factor else image_channels + 1

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError unless images of this size have such a condition."""
        if self.factor and (height % self.factor or width % self.factor):
            raise ValueError(
                f"{spelt('condition')} {self.text} needs a height and a width that {self.factor} divides, got "
                f"{height}x{width} images"
            )

    def of_training(self, x0: Tensor, seed: int, step: int, places: npt.NDArray[np.int64]) -> Tensor:
        """The condition of the images of a training step, a function of (image, seed, step, place).

        Args:
            x0: Images [n, C, H, W] in [-1, 1].
            seed: Of the training.
            step: In [0, 2^28).
            places: Of the images in the step's batch, [n].

        Returns:
            [n, channels(C), H, W], of x0's type. A hole is a rectangle with sides of one pixel up to the whole, all
            equally likely, at a place where it fits.
        """
        if self.factor:
            return self.of_small(self.reduced(x0), x0.shape[2:])
        # The timesteps take the first block of four words of their stream.
        bits = words(seed, places, 8, Stream.TRAIN_TIME, step)[:, 4:]
        masks = torch.from_numpy(_masks(x0.shape[2], x0.shape[3], bits))
        return self.of_masked(x0, masks[:, None].to(x0.device, x0.dtype))

    def reduced(self, x0: Tensor) -> Tensor:
        """The small images [n, C, H / factor, W / factor]: means over squares of factor x factor pixels."""
        assert self.factor is not None
        return F.avg_pool2d(x0, self.factor)

    def of_given(self, image: Tensor, mask: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
        """The condition of what a caller has of an image.

        Args:
            image: [n, C, h, w] floats in [-1, 1]. For low_res: the small images, or images of the full size, which are
                made small first. For inpaint: the full size; what they hold inside of the hole does not matter.
            mask: For inpaint: 1 where a pixel is known and 0 in the hole, of a shape that broadcasts to [n, 1, H, W].
            shape: (C, H, W) of the images that the network makes.

        Returns:
            [n, channels(C), H, W].

        Raises:
            ValueError: a mask is missing or surplus, or a shape does not fit.
        """
        channels, *size = shape
        small = [value // self.factor for value in size] if self.factor else size
        fitting = [[channels, *small], [channels, *size]] if self.factor else [[channels, *size]]
        if image.ndim != 4 or list(image.shape[1:]) not in fitting:
            wanted = " or ".join(str(["num", *one]) for one in fitting)
            raise ValueError(f"condition must have shape {wanted} for {self.text}, got {list(image.shape)}")
        if self.factor:
            if mask is not None:
                raise ValueError(f"a mask is for inpainting, and this network was trained with {self.text}")
            return self.of_small(image if list(image.shape[2:]) == small else self.reduced(image), (size[0], size[1]))
        if mask is None:
            raise ValueError("an inpainting network needs mask as well: 1 where a pixel is known, 0 in the hole")
        try:
            mask = mask.expand(len(image), 1, *size)
        except RuntimeError:
            raise ValueError(
                f"mask must broadcast to [{len(image)}, 1, {size[0]}, {size[1]}], got {list(mask.shape)}"
            ) from None
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask must be boolean, or hold 0 (to be filled) and 1 (known) alone")
        return self.of_masked(image, mask.to(image.device, image.dtype))

    @staticmethod
    def of_small(small: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
        """The condition of small images [n, C, h, w]: scaled up to `size`, bilinearly."""
        return F.interpolate(small, tuple(size), mode="bilinear", align_corners=False)

    @staticmethod
    def of_masked(x0: Tensor, mask: Tensor) -> Tensor:
        """The condition of images [n, C, H, W] of which only what the mask [n, 1, H, W] says is known."""
        return torch.cat([x0 * mask, mask.expand(len(x0), 1, *x0.shape[2:])], dim=1)


def _masks(height: int, width: int, bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Masks [n, height, width] with a hole of zeros each; its height, width, row and column from four words [n, 4]."""

    def whole(column: int, bound: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
        return (bits[:, column].astype(np.uint64) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)

    tall, wide = 1 + whole(0, height), 1 + whole(1, width)
    top, left = whole(2, height - tall + 1), whole(3, width - wide + 1)
    rows, columns = np.arange(height), np.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return 1 - (in_rows[:, :, None] & in_columns[:, None, :]).astype(np.float32)


class Concatenated(nn.Module):
    """A network with its condition as a keyword: the condition's channels follow those of the state.

    Args:
        model: Takes [B, C + channels of the condition, H, W], times and keyword arguments.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, *, condition: Tensor, **kwargs: Any) -> Tensor:
        """The model's output for states x [B, C, H, W] and their conditions [B, ..., H, W]."""
        output: Tensor = self.model(torch.cat([x, condition.to(x.dtype)], dim=1), t, **kwargs)
        return output
