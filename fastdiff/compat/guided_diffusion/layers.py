"""The blocks of their networks under their names and with their constructors, for networks that others build of them.

`UNetModel` is made of fastdiff's own blocks (`fastdiff.nets.unet`), so none of its modules is an instance of these.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.compat.guided_diffusion.nn import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    zero_module,
)
from fastdiff.tensors import split_qkv

__all__ = [
    "AttentionBlock",
    "Downsample",
    "QKVAttention",
    "QKVAttentionLegacy",
    "ResBlock",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "Upsample",
    "count_flops_attn",
]


class TimestepBlock(nn.Module):
    """A module whose forward takes the time's embedding [B, E] as its second argument."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """To be written by subclasses."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward(x, emb)")


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """Modules one after the other; those that are `TimestepBlock`s get the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """Features [B, C, ...] and embedding [B, E] to features."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Twice the resolution (in 3 dimensions of the last two) by repeating pixels, then an optional convolution.

    Args:
        channels: Of the input.
        use_conv: Whether there is a convolution behind it, `conv`.
        dims: 1, 2 or 3.
        out_channels: Of the convolution; `channels` if None.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.dims = dims
        if use_conv:
            self.conv = conv_nd(dims, channels, self.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to [B, out_channels, ...]."""
        _check_channels(x, self.channels)
        sizes = [*x.shape[2:3], *(2 * size for size in x.shape[3:])] if self.dims == 3 else [2 * s for s in x.shape[2:]]
        x = F.interpolate(x, sizes, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Half the resolution (in 3 dimensions of the last two) by a strided convolution or an average, `op`.

    Args:
        channels: Of the input.
        use_conv: Whether it is a convolution.
        dims: 1, 2 or 3.
        out_channels: Of the convolution; `channels` if None.

    Raises:
        ValueError: an average with other channels out than in.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.dims = dims
        stride: Any = (1, 2, 2) if dims == 3 else 2
        if use_conv:
            self.op = conv_nd(dims, channels, self.out_channels, 3, stride=stride, padding=1)
        elif self.out_channels != channels:
            raise ValueError(f"an average keeps its {channels} channels, got out_channels={out_channels}")
        else:
            self.op = avg_pool_nd(dims, kernel_size=stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to [B, out_channels, ...]."""
        _check_channels(x, self.channels)
        y: Tensor = self.op(x)
        return y


class ResBlock(TimestepBlock):
    """A residual block that is told the time; parts in_layers, emb_layers, out_layers and skip_connection.

    Args:
        channels: Of the input.
        emb_channels: Of the embedding, to which the block applies its SiLU.
        dropout: Probability.
        out_channels: Of the output; `channels` if None.
        use_conv: A 3x3 in place of a 1x1 convolution beside the block, where the channels change.
        use_scale_shift_norm: The embedding enters as scale and shift.
        dims: 1, 2 or 3.
        use_checkpoint: Compute activations again in the backward pass.
        up: Twice the resolution.
        down: Half the resolution.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.emb_channels = emb_channels
        self.dropout = dropout
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.updown = up or down
        # Made in their order, so that a seed gives the same weights.
        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(), conv_nd(dims, channels, self.out_channels, 3, padding=1)
        )
        self.h_upd: nn.Module = nn.Identity()
        self.x_upd: nn.Module = nn.Identity()
        if self.updown:
            kind = Upsample if up else Downsample
            self.h_upd, self.x_upd = kind(channels, False, dims), kind(channels, False, dims)
        width = 2 * self.out_channels if use_scale_shift_norm else self.out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), linear(emb_channels, width))
        self.out_layers = nn.Sequential(
            normalization(self.out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(conv_nd(dims, self.out_channels, self.out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if self.out_channels != channels:
            size, padding = (3, 1) if use_conv else (1, 0)
            self.skip_connection = conv_nd(dims, channels, self.out_channels, size, padding=padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Features [B, channels, ...] and embedding [B, emb_channels] to [B, out_channels, ...]."""
        y: Tensor = checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)
        return y

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(self.h_upd(act(norm(x))))
        e = self.emb_layers(emb).to(h.dtype)
        e = e.view(*e.shape, *[1] * (h.dim() - 2))
        norm, *rest = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = e.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e)
        for layer in rest:
            h = layer(h)
        y: Tensor = self.skip_connection(self.x_upd(x)) + h
        return y


class _PackedAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v on packed [B, 3C, N]; the root of the scale acts on q and k each."""

    order: Any

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        """[B, 3C, N] to [B, C, N].

        Raises:
            ValueError: channels that are not three times a multiple of the heads.
        """
        if qkv.shape[1] % (3 * self.n_heads):
            raise ValueError(f"the channels must be divisible by 3 * {self.n_heads} heads, got {qkv.shape[1]}")
        q, k, v = split_qkv(qkv.transpose(1, 2), self.n_heads, self.order)
        scale = q.shape[-1] ** -0.25
        weights = (q * scale) @ (k * scale).transpose(-1, -2)
        weights = weights.float().softmax(dim=-1).to(weights.dtype)
        y: Tensor = (weights @ v).transpose(2, 3).flatten(1, 2)
        return y

    @staticmethod
    def count_flops(model: Any, _x: Any, y: Any) -> None:
        """`count_flops_attn`."""
        count_flops_attn(model, _x, y)


class QKVAttentionLegacy(_PackedAttention):
    """Attention on rows in the order head, (q k v), channel."""

    order = "legacy"


class QKVAttention(_PackedAttention):
    """Attention on rows in the order (q k v), head, channel."""

    order = "new"


class AttentionBlock(nn.Module):
    """Attention between all positions, added to its input; parts norm, qkv and proj_out.

    Args:
        channels: Of the input.
        num_heads: Heads.
        num_head_channels: Channels per head, which wins over num_heads; -1 for none.
        use_checkpoint: Compute activations again in the backward pass.
        use_new_attention_order: `QKVAttention` in place of `QKVAttentionLegacy`.

    Raises:
        ValueError: channels that are not divisible by num_head_channels.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        if num_head_channels != -1:
            if channels % num_head_channels:
                raise ValueError(f"channels must be divisible by num_head_channels={num_head_channels}, got {channels}")
            num_heads = channels // num_head_channels
        self.channels = channels
        self.num_heads = num_heads
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = conv_nd(1, channels, 3 * channels, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(num_heads)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same shape."""
        y: Tensor = checkpoint(self._forward, (x,), self.parameters(), self.use_checkpoint)
        return y

    def _forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        y: Tensor = tokens + self.proj_out(self.attention(self.qkv(self.norm(tokens))))
        return y.view(x.shape)


def count_flops_attn(model: Any, _x: Any, y: Any) -> None:
    """Add the products of an attention layer to `model.total_ops`, for the package thop; y is its output in a tuple."""
    batch, channels, *sizes = y[0].shape
    positions = torch.Size(sizes).numel()
    model.total_ops += torch.DoubleTensor([2 * batch * positions**2 * channels])


def _check_channels(x: Tensor, channels: int) -> None:
    if x.shape[1] != channels:
        raise ValueError(f"x must have {channels} channels, got shape {list(x.shape)}")
