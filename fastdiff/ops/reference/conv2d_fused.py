"""The oracle of `conv2d_fused`, in plain PyTorch, on any device: float32 arithmetic, float64 for float64 input.

It is read, not timed. The kernel is held to it, and it to PyTorch's own norm, SiLU and convolution in float64.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import Conv2dFusedCall
from fastdiff.tensors import compute_dtype


def conv2d_fused(call: Conv2dFusedCall) -> tuple[Tensor, Tensor, Tensor]:
    """y = conv(f(x)) + bias + time + residual, f(x) = silu(gain x + offset), and y's statistics.

    Args:
        call: As for `fastdiff.ops.conv2d_fused`; the SiLU only where there is a gain.

    Returns:
        (y [B, O, H', W'], mean [B, O], squares [B, O]) in the dtype of the arithmetic; mean of y over the pixels, as
        it is rounded to x's type, and sum of squared differences from it.
    """
    x, weight, bias, gain, offset, time, residual, stride, padding, act, _ = call
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
