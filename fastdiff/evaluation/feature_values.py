"""A function from images to features, and what its values must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Features", "require_values"]


@dataclass(frozen=True, eq=False)
class Features:
    """A function from images to features.

    Attributes:
        name: As it was asked for.
        compute: From uint8 [n, C, H, W] to features float32 [n, D], and logits of classes [n, K] or None.
        has_classes: Whether there are logits.
        about: For the report: "resize", what is done to an image first; "sha256" of a file; a "note".
    """

    name: str
    compute: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    has_classes: bool
    about: Mapping[str, Any]


def require_values(features: Tensor, what: str) -> Tensor:
    """Features as float32 [n, D] on the CPU.

    Raises:
        ValueError: another shape, or too many for a covariance.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"{what} must return features, floats [n, D], got {features.dtype} {list(features.shape)}")
    return features.detach().to("cpu", torch.float32)
