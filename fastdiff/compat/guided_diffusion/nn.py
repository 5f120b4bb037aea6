"""Small functions under their names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from fastdiff.compat.absent import explained

__all__ = [
    "GroupNorm32",
    "SiLU",
    "avg_pool_nd",
    "checkpoint",
    "conv_nd",
    "linear",
    "mean_flat",
    "normalization",
    "scale_module",
    "timestep_embedding",
    "update_ema",
    "zero_module",
]

__getattr__ = explained(__name__, {"CheckpointFunction": "call checkpoint(func, inputs, params, flag)"})

SiLU = nn.SiLU


class GroupNorm32(nn.GroupNorm):
    """Group norm in float32, whatever the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, ...] in the type of the input."""
        return super().forward(input.float()).type(input.dtype)


def mean_flat(tensor: Tensor) -> Tensor:
    """Mean over all dimensions but the first."""
    return tensor.mean(dim=list(range(1, tensor.dim())))


@torch.no_grad()
def update_ema(target_params: Iterable[Tensor], source_params: Iterable[Tensor], rate: float = 0.99) -> None:
    """target = rate * target + (1 - rate) * source, in place."""
    for target, source in zip(target_params, source_params, strict=True):
        target.mul_(rate).add_(source, alpha=1 - rate)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    """Cosines, then sines, of the times [B] at dim / 2 frequencies: [B, dim]; an odd dim ends with a zero.

    The frequencies fall from 1 towards 1 / max_period. float32, as theirs.
    """
    half = dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(exponent)
    return torch.nn.functional.pad(torch.cat((angles.cos(), angles.sin()), dim=1), (0, dim % 2))


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, and return the module."""
    return scale_module(module, 0.0)


@torch.no_grad()
def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """Multiply all parameters, and return the module."""
    for parameter in module.parameters():
        parameter.mul_(scale)
    return module


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution of 1, 2 or 3 dimensions."""
    return _by_dims(dims, (nn.Conv1d, nn.Conv2d, nn.Conv3d))(*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Average pooling in 1, 2 or 3 dimensions."""
    return _by_dims(dims, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))(*args, **kwargs)


def linear(*args: Any, **kwargs: Any) -> nn.Module:
    """A linear layer."""
    return nn.Linear(*args, **kwargs)


def normalization(channels: int) -> nn.Module:
    """A group norm of 32 groups."""
    return GroupNorm32(32, channels)


def checkpoint(func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[nn.Parameter], flag: bool) -> Any:
    """func(*inputs); with `flag`, what it computes in between is computed again in the backward pass.

    `params` is not needed: PyTorch finds the parameters by itself.
    """
    return torch_checkpoint(func, *inputs, use_reentrant=False) if flag else func(*inputs)


def _by_dims(dims: int, choices: Sequence[Callable[..., nn.Module]]) -> Callable[..., nn.Module]:
    if dims not in (1, 2, 3):
        raise ValueError(f"unsupported dimensions: {dims}")
    return choices[dims - 1]
