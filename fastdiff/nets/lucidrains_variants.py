"""lucidrains' `Unet` as other versions of denoising-diffusion-pytorch have it, and its `Unet1D`.

They differ from today's in their norms, their attention and how they halve, and in nothing else: `VariantUnet` is
`Unet` with other parts in the same places. `Unet1D` is one for images of one pixel height.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fastdiff.nets.lucidrains import Unet, _Attention, _Block, _LinearAttention

__all__ = ["LayerNorm", "StandardizedConv2d", "UnetParts", "VariantUnet", "standardized"]

# Of theirs, in float32.
_EPSILON = 1e-5


@dataclass(frozen=True)
class UnetParts:
    """What a version has in which place.

    Attributes:
        norm_groups: Of the group norm in its blocks; None for the norm of each pixel that is around its attention.
        standardized: Whether the kernels of its blocks are standardised before they are used.
        layer_norm: Whether the norm around its attention takes off the mean.
        num_memory: Learned keys and values of its attention.
        divides_values: Whether linear attention divides its values by the number of pixels.
        mid_heads, mid_head_dim: Of the attention in the middle.
        halves: "pixels", four of which become channels, or "convolution", of 4x4 pixels.
        is_flat: It has images of one pixel height.
    """

    norm_groups: int | None
    standardized: bool
    layer_norm: bool
    num_memory: int
    divides_values: bool
    mid_heads: int
    mid_head_dim: int
    halves: Literal["pixels", "convolution"]
    is_flat: bool = False


class LayerNorm(nn.Module):
    """Of each pixel's channels: mean 0 and variance 1, times g, plus b.

    Parameters: g and b, [1, C, 1, 1]. Versions without b have zeros there.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.eps = _EPSILON
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        mean = x.mean(dim=1, keepdim=True)
        variance = x.var(dim=1, unbiased=False, keepdim=True)
        y: Tensor = (x - mean) / (variance + self.eps).sqrt() * self.g + self.b
        return y


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 for each channel of the result.

    Source: Qiao et al. (2019), arXiv:1903.10520.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H, W]."""
        y: Tensor = self._conv_forward(x, standardized(self.weight), self.bias)
        return y


def standardized(weight: Tensor) -> Tensor:
    """Kernels [C_out, C_in, k, k] with mean 0 and variance 1 of each channel of the result."""
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), unbiased=False, keepdim=True)
    kernels: Tensor = (weight - mean) * (variance + _EPSILON).rsqrt()
    return kernels


class VariantUnet(Unet):
    """`Unet` of another version.

    Args:
        parts: What the version has.
        settings: Of `Unet`: its sizes.
    """

    def __init__(self, parts: UnetParts, settings: dict[str, Any]) -> None:
        super().__init__(**settings)
        self.parts = parts
        for block in [module for module in self.modules() if isinstance(module, _Block)]:
            channels = block.proj.out_channels
            if parts.norm_groups is not None:
                block.norm = nn.GroupNorm(parts.norm_groups, channels)
            if parts.standardized:
                block.proj = StandardizedConv2d(block.proj.in_channels, channels, 3, padding=1)
        self.mid_attn = _Attention(self.mid_attn.to_out.out_channels, parts.mid_heads, parts.mid_head_dim)
        for attention in [module for module in self.modules() if isinstance(module, _Attention | _LinearAttention)]:
            self._change_attention(attention)
        if parts.halves == "convolution":
            for level in list(self.downs)[:-1]:
                layers = cast(nn.ModuleList, level)
                joined = cast(nn.Conv2d, cast(nn.Sequential, layers[3])[1])
                layers[3] = nn.Conv2d(joined.in_channels // 4, joined.out_channels, 4, stride=2, padding=1)
        if parts.is_flat:
            self._flatten()

    def _change_attention(self, attention: _Attention | _LinearAttention) -> None:
        parts, is_linear = self.parts, isinstance(attention, _LinearAttention)
        shape = list(attention.mem_kv.shape)
        shape[3 if is_linear else 2] = parts.num_memory
        attention.mem_kv = nn.Parameter(attention.mem_kv.new_empty(shape))
        channels = attention.to_qkv.in_channels
        if parts.layer_norm:
            attention.norm = LayerNorm(channels)
        if isinstance(attention, _LinearAttention):
            attention.divides_values = parts.divides_values
            if parts.layer_norm:
                attention.to_out[1] = LayerNorm(channels)

    def _flatten(self) -> None:
        """Make every kernel one row, and every doubling one of columns."""
        for module in list(self.modules()):
            for name, part in list(module.named_children()):
                if isinstance(part, nn.Upsample):
                    setattr(module, name, nn.Upsample(scale_factor=(1, 2), mode="nearest"))
                elif isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1):
                    size, pad, stride = part.kernel_size[0], int(part.padding[0]), part.stride[0]
                    row = type(part)(
                        part.in_channels, part.out_channels, (1, size), stride=(1, stride), padding=(0, pad)
                    )
                    setattr(module, name, row)

    @property
    def is_flat(self) -> bool:
        """Whether its images have one pixel height."""
        return self.parts.is_flat

    @property
    def divisors(self) -> tuple[int, int]:
        """What height and width must be divisible by."""
        return (1 if self.is_flat else self.downsample_factor, self.downsample_factor)
