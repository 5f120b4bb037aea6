"""Tensors as every floor sees them: types, memory formats, shapes for broadcasting, and how q, k and v lie in one."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Of a head in the GPU kernels, see kernels/attention_tiles.py.
MAX_HEAD_DIM = 512
QkvLayout = Literal["separate", "new", "legacy", "edm"]
# What a packed channel's number counts, slowest first.
PACKINGS = {
    "separate": ("part", "head", "channel"),
    "new": ("part", "head", "channel"),
    "legacy": ("head", "part", "channel"),
    "edm": ("head", "channel", "part"),
}


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that an op keeps for x: channels_last where x is [B, C, H, W] in that layout, else contiguous."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Shape [B] or [1] values so that they broadcast against x [B, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def split_qkv(qkv: Tensor, num_heads: int, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a packed qkv as q, k and v.

    Args:
        qkv: [B, S, 3C] of any strides.
        num_heads: A divisor of C.
        layout: How the 3C channels are ordered, a key of `PACKINGS`; see `UNetConfig.qkv_layout`.

    Returns:
        q, k and v, each [B, num_heads, S, C / num_heads], of the same strides.
    """
    packing = PACKINGS[layout]
    sizes = {"part": 3, "head": num_heads, "channel": qkv.shape[2] // (3 * num_heads)}
    place = {name: 2 + i for i, name in enumerate(packing)}
    parts = qkv.unflatten(2, [sizes[name] for name in packing])
    parts = parts.permute(place["part"], 0, place["head"], 1, place["channel"])
    return parts[0], parts[1], parts[2]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """A view of x [B, S, C], of any strides, as [B, num_heads, S, C / num_heads]."""
    heads: Tensor = x.unflatten(2, (num_heads, x.shape[2] // num_heads))
    return heads.transpose(1, 2)


def empty_output(qkv: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised [B, S, C] for a packed qkv [B, S, 3C], in its memory order."""
    return _empty_like(qkv[:, :, : qkv.shape[2] // 3], is_channel_major(qkv), dtype)


def empty_packed(qkv: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of the shape of a packed qkv [B, S, 3C], dense, in its memory order."""
    return _empty_like(qkv, is_channel_major(qkv), dtype)


def is_channel_major(qkv: Tensor) -> bool:
    """Whether qkv [B, S, 3C] is [B, 3C, S] in memory, as images in NCHW are; else its own order counts."""
    return not qkv.is_contiguous() and qkv.transpose(1, 2).is_contiguous()


def _empty_like(x: Tensor, channel_major: bool, dtype: torch.dtype | None) -> Tensor:
    if channel_major:
        x = x.transpose(1, 2)
    new: Tensor = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return new.transpose(1, 2) if channel_major else new


def time_tensor(times: npt.NDArray[np.float64], device: torch.device) -> Tensor:
    """Times as a network takes them: int64 where all of them are whole, else float32."""
    whole = bool((times == np.round(times)).all())
    return torch.from_numpy(times.copy()).to(device, torch.int64 if whole else torch.float32)
