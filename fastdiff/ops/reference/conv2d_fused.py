"""The oracle of the fused convolution, in plain PyTorch: float32 arithmetic, float64 for float64 input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastdiff.tensors import compute_dtype


def conv2d_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    time: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: int,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = conv(f(x)) + bias + time + residual, f(x) = silu(gain x + offset), and y's statistics.

    Args:
        x: [B, C, H, W].
        weight: [O, C, k, k].
        bias: [O] or None.
        gain, offset: [B, C], or None for f(x) = x.
        time: [B, O] or None.
        residual: y's shape or None.
        act: Apply the SiLU where there is a gain.

    Returns:
        (y [B, O, H', W'], mean [B, O], squares [B, O]) in the dtype of the arithmetic; mean of y over the pixels, as
        it is rounded to x's type, and sum of squared differences from it.
    """
    dtype = compute_dtype(x)
    h = x.to(dtype)
    if gain is not None and offset is not None:
        h = h * _spread(gain.to(dtype)) + _spread(offset.to(dtype))
        h = F.silu(h) if act else h
    y = F.conv2d(h, weight.to(dtype), None if bias is None else bias.to(dtype), stride, padding)
    y = y if time is None else y + _spread(time.to(dtype))
    y = y if residual is None else y + residual.to(dtype)
    mean, squares = statistics(y.to(x.dtype))
    return y, mean, squares


def statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the pixels of y [B, O, H, W], and sum of squared differences from it; each [B, O]."""
    wide = y.to(compute_dtype(y)).flatten(2)
    mean = wide.mean(dim=2)
    return mean, (wide - mean[:, :, None]).square().sum(dim=2)


def _spread(values: Tensor) -> Tensor:
    return values[:, :, None, None]
