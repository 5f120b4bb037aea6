"""The modules that `fastdiff.nets.unet` is made of, flat, so that the engine can lower them one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastdiff import ops
from fastdiff.nets.config import DownsamplePadding, TimeEmbedding
from fastdiff.nets.dropout import Dropout
from fastdiff.tensors import QkvLayout, split_qkv

__all__ = [
    "AttentionBlock",
    "Block",
    "Conv1x1",
    "Conv3x3",
    "Downsample",
    "Dropout",
    "Filter",
    "GroupNormAct",
    "Linear",
    "PyramidConv",
    "ResBlock",
    "Resample",
    "SiLU",
    "Upsample",
    "silu",
    "timestep_embedding",
]

Resample = Literal["none", "down", "up"]
Filter = tuple[int, ...]
# Values that PyTorch does not cut by threads (at::internal::GRAIN_SIZE).
_SERIAL = 32768


def timestep_embedding(t: Tensor, channels: int, kind: TimeEmbedding, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sinusoidal embedding of the time.

    Args:
        t: Times [B], integer or floating, in network timesteps.
        channels: Length of the embedding, even.
        kind: "sin_cos" (Ho): sin(t * w_i) for i = 0 ... half - 1, then cos(t * w_i), half = channels / 2, with
            w_i = exp(-log(1e4) * i / (half - 1)). "cos_sin" (OpenAI): cosines first, w_i = exp(-log(1e4) * i / half).
        dtype: Type of the arithmetic and the result. At t = 1000 float32 is good to about 1e-4; the published
            networks were trained with exactly these roundings, so it is the default.

    Returns:
        Embedding [B, channels].

    Source: Vaswani et al. (2017), arXiv:1706.03762, section 3.5, as changed by Ho (2020) and OpenAI (2021).
    """
    half = channels // 2
    steps = half - 1 if kind == "sin_cos" else half
    exponent = -math.log(1e4) * torch.arange(half, dtype=dtype, device=t.device) / steps
    angles = t.to(dtype)[:, None] * torch.exp(exponent)[None, :]
    waves = (torch.sin, torch.cos) if kind == "sin_cos" else (torch.cos, torch.sin)
    return torch.cat([_in_parts(wave, angles) for wave in waves], dim=1)


def fourier_embedding(t: Tensor, frequencies: Tensor) -> Tensor:
    """Sines, then cosines, of 2 pi t f for times [B] and frequencies [n]: [B, 2n] in the type of the frequencies.

    Source: Song et al. (2021), arXiv:2011.13456, appendix H; Tancik et al. (2020), arXiv:2006.10739.
    """
    angles = t.to(frequencies.dtype)[:, None] * (2 * math.pi * frequencies)[None, :]
    return torch.cat([_in_parts(wave, angles) for wave in (torch.sin, torch.cos)], dim=1)


def _in_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of each value of x [B, C], which on the CPU does not depend on the number of threads.

    PyTorch cuts more than `_SERIAL` values by threads, and rounds those at the ends of a cut, which fill no vector,
    otherwise.
    """
    if x.device.type != "cpu" or x.numel() <= _SERIAL:
        return function(x)
    return torch.cat([function(part) for part in x.split(max(1, _SERIAL // x.shape[1]))])


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of [B, C], for any number of threads."""
    return _in_parts(F.silu, x)


class SiLU(nn.SiLU):
    """The function `silu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] to [B, C]."""
        return silu(x)


class GroupNormAct(nn.Module):
    """Group norm, then an optional scale and shift per sample and channel, then an optional SiLU.

    y = act(((h - mean) / sqrt(var + eps) * weight + bias) * (1 + scale) + shift), h = x + added, mean and (biased)
    variance over the pixels and channels of a group. All of it is computed in float32 at least and rounded once, to the
    type of x. It is the op `group_norm_act`, which has no second derivative; float64 has one. Parameters: weight [C],
    bias [C].

    Source: Wu, He (2018), arXiv:1803.08494; the scale and shift: Nichol, Dhariwal (2021), arXiv:2102.09672, appendix A.
    """

    def __init__(self, channels: int, groups: int, eps: float, *, act: bool = True) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.act = act
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, added: Tensor | None = None
    ) -> Tensor:
        """Normalise x [B, C, H, W]; scale, shift and added are [B, C].

        Raises:
            ValueError: Only one of scale and shift is given.
        """
        if (scale is None) != (shift is None):
            raise ValueError("scale and shift must be given together, got one of them; pass both or neither")
        if x.dtype != torch.float64 and (x.device.type == "cuda" or (x.device.type == "cpu" and ops.has_extension())):
            return ops.group_norm_act(
                x,
                self.weight,
                self.bias,
                self.groups,
                eps=self.eps,
                act=self.act,
                scale=scale,
                shift=shift,
                added_time=added,
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        h = x.to(dtype)
        if added is not None:
            h = h + added.to(dtype)[:, :, None, None]
        if x.device.type == "cpu":
            # ATen's channels_last kernel takes the variance as E[x^2] - E[x]^2: in float32 it is off by 6e-4 where the
            # mean is ten deviations from zero, and useless at a thousand. A group norm ignores a constant, and so
            # does its gradient, so one is subtracted first.
            h = h - self._group_mean(h.detach())
        # torch.group_norm, since F.group_norm refuses a single value per group and takes it in a larger batch.
        h = torch.group_norm(h, self.groups, self.weight.to(dtype), self.bias.to(dtype), self.eps)
        if scale is not None and shift is not None:
            h = h * (1 + scale.to(dtype)[:, :, None, None]) + shift.to(dtype)[:, :, None, None]
        if self.act:
            h = F.silu(h)
        return h.to(x.dtype)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The module of x, and x for whoever reads it beside it; in training their gradients are added in one pass."""
        if x.dtype == torch.float32 and x.device.type == "cpu" and ops.has_extension():
            return ops.group_norm_act_beside(x, self.weight, self.bias, self.groups, eps=self.eps, act=self.act)
        return self(x), x

    def _group_mean(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        size = channels // self.groups
        mean = x.mean(dim=(2, 3)).view(x.shape[0], self.groups, size, 1, 1).mean(dim=2, keepdim=True)
        return mean.expand(-1, -1, size, 1, 1).reshape(x.shape[0], channels, 1, 1)

    def extra_repr(self) -> str:
        """Settings for printing."""
        return f"{self.weight.shape[0]}, groups={self.groups}, eps={self.eps}, act={self.act}"


class Linear(nn.Linear):
    """Linear layer. In training it is the op `linear`. Parameters: weight [C_out, C_in], bias [C_out]."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., C_in] to [..., C_out], to which a residual of that shape is added."""
        if self.training and torch.is_grad_enabled():
            return ops.linear(x, self.weight, self.bias, residual=residual)
        y = super().forward(x)
        return y if residual is None else y + residual


class Conv1x1(nn.Conv2d):
    """Linear layer of each pixel. In training it is the op `linear`.

    Parameters: weight [C_out, C_in, 1, 1], bias [C_out].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H, W]."""
        if self.training and torch.is_grad_enabled():
            return ops.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


class Conv3x3(nn.Conv2d):
    """3x3 convolution. In training it is the op `conv3x3`.

    Parameters: weight [C_out, C_in, 3, 3], bias [C_out].
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=padding)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H', W'], to which a residual of that shape is added.

        With a stride of 1 and padding it keeps the size.
        """
        if self.training and torch.is_grad_enabled():
            stride, padding = self.stride[0], int(self.padding[0])
            return ops.conv3x3(x, self.weight, self.bias, stride=stride, padding=padding, residual=residual)
        y = super().forward(x)
        return y if residual is None else y + residual


def _is_own(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly that class, and nobody looks at what goes in and out."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    watched = any(hooks) or "forward" in vars(module) or torch.nn.modules.module._has_any_global_hook()
    return type(module) is kind and not watched


def resampled(x: Tensor, how: Resample, taps: Filter = (1, 1)) -> Tensor:
    """[B, C, H, W] at half or twice the resolution, filtered in each direction.

    With taps f, halving is a convolution with f / sum(f) at every other pixel, and doubling its adjoint times 4, both
    with zeros outside of the image. (1, 1): means of 2x2 pixels, and repeated pixels.
    """
    if how == "none":
        return x
    if tuple(taps) == (1, 1):
        return F.avg_pool2d(x, 2) if how == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")
    channels, pad = x.shape[1], (len(taps) - 1) // 2
    kernel = filter_of(taps, x).expand(channels, 1, -1, -1)
    if how == "down":
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=channels)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=channels)


def filter_of(taps: Filter, like: Tensor) -> Tensor:
    """The product of the taps with themselves, [n, n], with the sum 1."""
    line = torch.tensor(taps, dtype=like.dtype, device=like.device)
    return torch.outer(line, line) / line.sum() ** 2


class PyramidConv(nn.Conv2d):
    """3x3 convolution, filtered to half the resolution: one convolution of stride 2 with a larger kernel.

    Parameters: weight [C_out, C_in, 3, 3], bias [C_out].
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Filter) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.taps = tuple(taps)

    @property
    def pad(self) -> int:
        """Zeros around the image."""
        return 1 + (len(self.taps) - 1) // 2

    def whole_kernel(self) -> Tensor:
        """Kernel and filter as one kernel [C_out, C_in, n + 2, n + 2] of n taps."""
        size = len(self.taps) - 1
        spread = F.pad(self.weight, (size, size, size, size)).flatten(0, 1)[:, None]
        # Symmetric, so that a correlation is the convolution.
        joined = F.conv2d(spread, filter_of(self.taps, self.weight)[None, None])[:, 0]
        kernel: Tensor = joined.unflatten(0, self.weight.shape[:2])
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H/2, W/2]."""
        y: Tensor = F.conv2d(x, self.whole_kernel(), self.bias, stride=2, padding=self.pad)
        return y


class Downsample(nn.Module):
    """Half the resolution: a 3x3 convolution of stride 2, or the average of 2x2 pixels.

    Parameters: conv.weight [C, C, 3, 3], conv.bias [C], or none.
    """

    def __init__(self, channels: int, *, use_conv: bool, padding: DownsamplePadding) -> None:
        super().__init__()
        self.padding = padding
        self.conv = None
        if use_conv:
            self.conv = Conv3x3(channels, channels, stride=2, padding=1 if padding == "symmetric" else 0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H/2, W/2]."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        if self.padding == "asymmetric":
            x = F.pad(x, (0, 1, 0, 1))
        y: Tensor = self.conv(x)
        return y


class Upsample(nn.Module):
    """Twice the resolution by repeating pixels, then an optional 3x3 convolution.

    Parameters: conv.weight [C, C, 3, 3], conv.bias [C], or none.
    """

    def __init__(self, channels: int, *, use_conv: bool) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.conv is None:
            return x
        y: Tensor = self.conv(x)
        return y


class ResBlock(nn.Module):
    """Residual block that is told the time: x + conv(act(norm(conv(act(norm(x))) + e))), e a projection of the time.

    With `scale_shift`, e enters the second norm as scale and shift instead of being added before it. With `resample`
    "down" or "up", both branches change resolution without parameters, the inner one between its norm and its
    convolution (ADM, after BigGAN).

    Parameters: norm1 [C_in], conv1 [C, C_in, 3, 3], emb_proj [C or 2C, E], norm2 [C], conv2 [C, C, 3, 3], and
    skip [C, C_in, 1, 1] where C differs from C_in, or where it resamples with `projection`. `groups` is a function of
    the channels. The sum is multiplied by `skip_scale`.

    Source: Ho (2020), arXiv:2006.11239, appendix B; Dhariwal, Nichol (2021), arXiv:2105.05233, section 3; Song et al.
    (2021), arXiv:2011.13456, appendix H.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        groups: int | Callable[[int], int],
        eps: float,
        dropout: float,
        scale_shift: bool,
        resample: Resample = "none",
        taps: Filter = (1, 1),
        projection: bool = False,
        skip_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample
        self.taps = tuple(taps)
        self.skip_scale = skip_scale
        num = groups if callable(groups) else lambda _: groups
        self.norm1 = GroupNormAct(in_channels, num(in_channels), eps)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.emb_proj = Linear(emb_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = GroupNormAct(out_channels, num(out_channels), eps)
        self.dropout = Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        projects = in_channels != out_channels or (projection and resample != "none")
        self.skip = Conv1x1(in_channels, out_channels) if projects else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features [B, C_in, H, W].
            emb: Embedding [B, E] with its SiLU already applied, as `UNet.embed` gives it.

        Returns:
            Features [B, C, H', W'] with H' = H, H/2 or 2H.
        """
        joins = self.training and torch.is_grad_enabled()
        h, x = self.norm1.beside(x) if joins and _is_own(self.norm1, GroupNormAct) else (self.norm1(x), x)
        h, x = (resampled(a, self.resample, self.taps) for a in (h, x))
        h = self.conv1(h)
        emb = self.emb_proj(emb)
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h, added=emb)
        h = self.dropout(h)
        if joins and _is_own(self.conv2, Conv3x3):
            y: Tensor = self.conv2(h, self.skip(x))
        else:
            y = self.skip(x) + self.conv2(h)
        return y if self.skip_scale == 1 else y * self.skip_scale


class AttentionBlock(nn.Module):
    """Self-attention between all pixels: x + proj(softmax(q k^T / sqrt(d)) v), d channels per head.

    It is the op `attention`, which reads q, k and v in the packed result of one linear layer. The d^-1/2 acts as d^-1/4
    on q and on k where scores are stored, and on float32 accumulators in the fused kernels, so float16 cannot overflow;
    the softmax is in float32 or wider in either case. The fused kernels have no second derivative: where one is wanted,
    run under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`, on a GPU with heads of at most 256 channels.

    Parameters: norm [C], qkv [3C, C] with rows in the order of `layout`, proj [C, C].

    Source: Ho (2020), arXiv:2006.11239, appendix B; heads: Nichol, Dhariwal (2021), arXiv:2102.09672, appendix A.
    """

    def __init__(
        self, channels: int, num_heads: int, *, groups: int, eps: float, layout: QkvLayout, skip_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.skip_scale = skip_scale
        self.layout = layout
        self.norm = GroupNormAct(channels, groups, eps, act=False)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the packed [B, N, 3C] as q, k and v, each [B, heads, N, d].

        Given row numbers, [1, 1, 3C], it tells where each row of q, k and v lies in the packed weight.
        """
        return split_qkv(qkv, self.num_heads, self.layout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        batch, channels, height, width = x.shape
        # In channels_last the tokens are a view: no copy on the way in or out.
        joins = self.training and torch.is_grad_enabled()
        h, x = self.norm.beside(x) if joins and _is_own(self.norm, GroupNormAct) else (self.norm(x), x)
        tokens = h.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        tokens = self._attend(self.qkv(tokens))
        if joins and _is_own(self.proj, Linear):
            h = self.proj(tokens, x.permute(0, 2, 3, 1).reshape(batch, height * width, channels))
            y: Tensor = h.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            h = self.proj(tokens)
            y = x + h.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return y if self.skip_scale == 1 else y * self.skip_scale

    def _attend(self, qkv: Tensor) -> Tensor:
        """[B, N, 3C] to [B, N, C]; in training on the CPU in C++."""
        trains = self.training and torch.is_grad_enabled()
        trains = trains and ops.trains_on_cpu(qkv, self.num_heads, self.layout)
        implementation: Literal["cpu", "auto"] = "cpu" if trains else "auto"
        return ops.attention(qkv, self.num_heads, layout=self.layout, implementation=implementation)


class Block(nn.ModuleList):
    """Layers that run one after the other; those that want the embedding get it.

    Attributes:
        recompute: Compute activations again in the backward pass instead of keeping them.
    """

    recompute = False

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Features [B, C, H, W] and activated embedding [B, E] to features."""
        if self.recompute and torch.is_grad_enabled():
            y: Tensor = checkpoint(self._run, x, emb, use_reentrant=False)
            return y
        return self._run(x, emb)

    def _run(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x
