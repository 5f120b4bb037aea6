"""What a caller gives a network beside the noisy image, as the further channels of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.files.data import DataScaling
from fastdiff.nets.conditions import ImageCondition

__all__ = ["checked_condition", "no_condition"]


def no_condition(channels: int) -> None:
    """Raise ValueError where a network has further channels, and nothing is there to fill them."""
    if channels:
        raise ValueError(
            f"this network takes further channels ({channels}) beside those of the noisy image, which only "
            "sample(condition=...) gives"
        )


def checked_condition(
    condition: Any,
    mask: Tensor | None,
    num: int,
    *,
    known: ImageCondition | None,
    channels: int,
    shape: tuple[int, int, int],
    scaling: DataScaling,
    device: torch.device,
) -> Tensor | None:
    """The further channels of a network's input, or None for a network without.

    Args:
        condition: What was given: an image for each sample, in [-1, 1] or as the data are stored; None for nothing.
        mask: See `ImageCondition.of_given`.
        num: Samples.
        known: What the network was trained with, where that is known; else the condition is taken as it is.
        channels: How many further channels there are.
        shape: (C, H, W) of the samples.
        scaling: Of the data.
        device: Of the network.

    Returns:
        [num, channels, H, W] on the device.

    Raises:
        ValueError: something is missing, surplus or of another shape.
    """
    if not channels:
        if condition is not None or mask is not None:
            raise ValueError("this network is given no images beside the noisy one: leave out condition and mask")
        return None
    if condition is None:
        what = f"trained with the condition {known.text}" if known else f"given {channels} further channels"
        raise ValueError(f"this network is {what}: give condition, an image for each sample")
    if not isinstance(condition, Tensor) or condition.ndim != 4 or len(condition) != num:
        got = list(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
        raise ValueError(f"condition must be a tensor [{num}, C, h, w], an image for each sample, got {got}")
    images: Tensor = condition if condition.is_floating_point() else scaling.to_model(condition)
    images = images.to(device)
    if known is not None:
        return known.of_given(images, None if mask is None else mask.to(device), shape)
    if list(images.shape[1:]) != [channels, *shape[1:]] or mask is not None:
        raise ValueError(
            f"condition must be [{num}, {channels}, {shape[1]}, {shape[2]}], the further channels of the network's "
            f"input, without a mask; got {list(images.shape)}"
        )
    return images
