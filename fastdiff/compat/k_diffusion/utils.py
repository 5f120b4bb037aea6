"""k-diffusion's `utils`: what its samplers and wrappers take from there."""

from __future__ import annotations

from torch import Tensor

__all__ = ["append_dims"]


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """x with dimensions of size 1 at its end, `target_dims` in all.

    Raises:
        ValueError: x has more dimensions.
    """
    missing = target_dims - x.ndim
    if missing < 0:
        raise ValueError(f"input has {x.ndim} dims but target_dims is {target_dims}, which is less")
    return x[(..., *[None] * missing)]
