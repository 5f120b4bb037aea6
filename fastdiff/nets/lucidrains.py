"""The U-Net of denoising-diffusion-pytorch: same constructor, same names in its state dict, same outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Unet", "UnetShape"]

_NUM_MEMORY = 4
_T = TypeVar("_T")


@dataclass(frozen=True)
class UnetShape:
    """What a `fastdiff.Pipeline` asks a network for.

    Attributes:
        in_channels: Channels of the images.
        num_classes: None: this network has no labels.
    """

    in_channels: int
    num_classes: None = None


class _RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = math.sqrt(dim)
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.normalize(x, dim=1) * self.g * self.scale
        return y


class _Sinusoid(nn.Module):
    """Sines, then cosines, of the time: frequencies theta^(-i / (half - 1))."""

    def __init__(self, dim: int, theta: float) -> None:
        super().__init__()
        self.num_waves = dim // 2
        self.theta = theta

    def forward(self, t: Tensor) -> Tensor:
        exponent = torch.arange(self.num_waves, device=t.device) * (-math.log(self.theta) / (self.num_waves - 1))
        angles = t[:, None] * torch.exp(exponent)[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class _FourierFeatures(nn.Module):
    """The time itself, then sines and cosines of it at random or learned frequencies."""

    def __init__(self, dim: int, is_random: bool) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"learned_sinusoidal_dim must be even, got {dim}")
        self.weights = nn.Parameter(torch.randn(dim // 2), requires_grad=not is_random)

    def forward(self, t: Tensor) -> Tensor:
        x = t[:, None].to(self.weights.dtype)
        angles = x * self.weights[None, :] * 2 * math.pi
        return torch.cat((x, angles.sin(), angles.cos()), dim=-1)


class _Block(nn.Module):
    def __init__(self, dim: int, dim_out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.norm: nn.Module = _RMSNorm(dim_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if scale is not None and shift is not None:
            x = x * (scale + 1) + shift
        y: Tensor = self.dropout(F.silu(x))
        return y


class _ResnetBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, time_dim: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * dim_out))
        self.block1 = _Block(dim, dim_out, dropout)
        self.block2 = _Block(dim_out, dim_out)
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.mlp(emb)[:, :, None, None].chunk(2, dim=1)
        y: Tensor = self.block2(self.block1(x, scale, shift)) + self.res_conv(x)
        return y


class _LinearAttention(nn.Module):
    """Attention whose cost is linear in the pixels: softmax over channels of q and over pixels of k."""

    divides_values = False

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm: nn.Module = _RMSNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, dim_head, _NUM_MEMORY))
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, dim, 1), _RMSNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = self.to_qkv(self.norm(x)).view(batch, 3, self.heads, -1, height * width).unbind(1)
        memory = self.mem_kv[:, None].expand(-1, batch, -1, -1, -1)
        k, v = torch.cat((memory[0], k), dim=-1), torch.cat((memory[1], v), dim=-1)
        if self.divides_values:
            v = v / (height * width)
        q = q.softmax(dim=-2) / math.sqrt(q.shape[-2])
        h = (v @ k.softmax(dim=-1).transpose(-1, -2)) @ q
        y: Tensor = self.to_out(h.reshape(batch, -1, height, width))
        return y


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm: nn.Module = _RMSNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, _NUM_MEMORY, dim_head))
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).view(batch, 3, self.heads, -1, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        memory = self.mem_kv[:, None].expand(-1, batch, -1, -1, -1)
        h = F.scaled_dot_product_attention(q, torch.cat((memory[0], k), dim=-2), torch.cat((memory[1], v), dim=-2))
        y: Tensor = self.to_out(h.transpose(-1, -2).reshape(batch, -1, height, width))
        return y


class _HalveByPixels(nn.Module):
    """[B, C, H, W] to [B, 4C, H/2, W/2]: the four pixels of a square become channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class Unet(nn.Module):
    """lucidrains' `Unet`: `forward(x, time, x_self_cond=None)`.

    Args:
        dim: Base width. init_dim (default dim) is that of the first convolution, out_dim of the output (default
            `channels`, twice that where the variance is learned).
        init_dim: See dim.
        out_dim: See dim.
        dim_mults: Width of each level in units of `dim`.
        channels: Of the images.
        self_condition: Whether the network is also given its last prediction of the image.
        learned_variance: Whether the second half of the output is the variance.
        learned_sinusoidal_cond: Learned frequencies for the time.
        random_fourier_features: Random ones.
        learned_sinusoidal_dim: Twice their number.
        sinusoidal_pos_emb_theta: Base of the frequencies where they are fixed.
        dropout: Probability, in the first half of each residual block.
        attn_dim_head: Channels per head, one for all levels or one each.
        attn_heads: Heads, likewise.
        full_attn: Which levels have full rather than linear attention; the last, if None.
        flash_attn: Taken for compatibility: PyTorch picks its fastest attention.

    Raises:
        ValueError: settings per level that are not one per level.
    """

    def __init__(
        self,
        dim: int,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        self_condition: bool = False,
        learned_variance: bool = False,
        learned_sinusoidal_cond: bool = False,
        random_fourier_features: bool = False,
        learned_sinusoidal_dim: int = 16,
        sinusoidal_pos_emb_theta: float = 10000,
        dropout: float = 0.0,
        attn_dim_head: int | tuple[int, ...] = 32,
        attn_heads: int | tuple[int, ...] = 4,
        full_attn: bool | tuple[bool, ...] | None = None,
        flash_attn: bool = False,
    ) -> None:
        super().__init__()
        num = len(dim_mults)
        self.channels = channels
        self.self_condition = self_condition
        self.config = UnetShape(channels)
        self.random_or_learned_sinusoidal_cond = learned_sinusoidal_cond or random_fourier_features
        self.out_dim = channels * (2 if learned_variance else 1) if out_dim is None else out_dim
        if not full_attn:
            full_attn = (*[False] * (num - 1), True)
        full: tuple[bool, ...] = _per_level("full_attn", full_attn, num)
        heads = _per_level("attn_heads", attn_heads, num)
        head_dims = _per_level("attn_dim_head", attn_dim_head, num)

        init_dim = dim if init_dim is None else init_dim
        widths = [init_dim, *(dim * mult for mult in dim_mults)]
        time_dim = 4 * dim
        self.init_conv = nn.Conv2d(channels * (2 if self_condition else 1), init_dim, 7, padding=3)
        waves: nn.Module = _Sinusoid(dim, sinusoidal_pos_emb_theta)
        if self.random_or_learned_sinusoidal_cond:
            waves = _FourierFeatures(learned_sinusoidal_dim, random_fourier_features)
        num_waves = learned_sinusoidal_dim + 1 if self.random_or_learned_sinusoidal_cond else dim
        self.time_mlp = nn.Sequential(waves, nn.Linear(num_waves, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim))

        def res(dim_in: int, dim_out: int) -> nn.Module:
            return _ResnetBlock(dim_in, dim_out, time_dim, dropout)

        def attention(width: int, level: int) -> nn.Module:
            kind: Callable[[int, int, int], nn.Module] = _Attention if full[level] else _LinearAttention
            return kind(width, heads[level], head_dims[level])

        # Made in their order, so that a seed gives the same weights, and registered in it: optimizer files count on it.
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        for level, (width, following) in enumerate(itertools.pairwise(widths)):
            layers = [res(width, width), res(width, width), attention(width, level)]
            if level < num - 1:
                layers.append(nn.Sequential(_HalveByPixels(), nn.Conv2d(4 * width, following, 1)))
            else:
                layers.append(nn.Conv2d(width, following, 3, padding=1))
            self.downs.append(nn.ModuleList(layers))

        self.mid_block1 = res(widths[-1], widths[-1])
        self.mid_attn = _Attention(widths[-1], heads[-1], head_dims[-1])
        self.mid_block2 = res(widths[-1], widths[-1])

        for level in range(num - 1, -1, -1):
            width, following = widths[level + 1], widths[level]
            joined = width + following
            layers = [res(joined, width), res(joined, width), attention(width, level)]
            conv = nn.Conv2d(width, following, 3, padding=1)
            layers.append(nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv) if level else conv)
            self.ups.append(nn.ModuleList(layers))

        self.final_res_block = res(2 * init_dim, init_dim)
        self.final_conv = nn.Conv2d(init_dim, self.out_dim, 1)

    @property
    def downsample_factor(self) -> int:
        """What height and width must be divisible by."""
        return 1 << (len(self.downs) - 1)

    @property
    def is_flat(self) -> bool:
        """Whether its images have one pixel height."""
        return False

    @property
    def divisors(self) -> tuple[int, int]:
        """What height must be divisible by, and what width."""
        return (self.downsample_factor, self.downsample_factor)

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: Noisy images [B, channels, H, W].
            time: [B].
            x_self_cond: Its last prediction of the image, with `self_condition`; zeros if None.

        Returns:
            [B, out_dim, H, W].

        Raises:
            ValueError: height or width is not divisible by `downsample_factor`.
        """
        if any(size % divisor for size, divisor in zip(x.shape[-2:], self.divisors, strict=True)):
            raise ValueError(
                f"height and width must be divisible by {self.downsample_factor}, got {list(x.shape[-2:])}"
            )
        if self.self_condition:
            x = torch.cat((torch.zeros_like(x) if x_self_cond is None else x_self_cond, x), dim=1)
        x = self.init_conv(x)
        first = x
        emb = self.time_mlp(time)
        kept = []
        for level in self.downs:
            res1, res2, attention, down = cast(nn.ModuleList, level)
            x = res1(x, emb)
            kept.append(x)
            x = res2(x, emb)
            x = attention(x) + x
            kept.append(x)
            x = down(x)
        x = self.mid_block1(x, emb)
        x = self.mid_attn(x) + x
        x = self.mid_block2(x, emb)
        for level in self.ups:
            res1, res2, attention, up = cast(nn.ModuleList, level)
            x = res1(torch.cat((x, kept.pop()), dim=1), emb)
            x = res2(torch.cat((x, kept.pop()), dim=1), emb)
            x = attention(x) + x
            x = up(x)
        x = self.final_res_block(torch.cat((x, first), dim=1), emb)
        y: Tensor = self.final_conv(x)
        return y


def _per_level(name: str, value: _T | tuple[_T, ...], num: int) -> tuple[_T, ...]:
    values = value if isinstance(value, tuple) else (value,) * num
    if len(values) != num:
        raise ValueError(f"{name} must have one entry per level, {num}, got {len(values)}")
    return values
