"""The op `conv2d_fused`: a convolution with what is before and after it in a U-Net. Inference only."""

from __future__ import annotations

import importlib
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import Conv2dFusedCall
from fastdiff.ops._arguments import describe, is_unwatched
from fastdiff.ops._dispatch import define, dispatch, has_triton, on_gpu
from fastdiff.ops.reference import conv2d_fused as reference
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype

ConvImplementation = Literal["auto", "reference", "aten", "triton"]


def conv2d_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | None = None,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    act: bool = True,
    time: Tensor | None = None,
    residual: Tensor | None = None,
    implementation: ConvImplementation = "auto",
) -> Tensor:
    """A 1x1 or 3x3 convolution with a norm and SiLU before it and sums after it.

        y = conv(f(x), weight) + bias + time + residual,   f(x) = silu(gain x + offset)

    gain and offset are a group norm's, from `norm_factors`; outside of the image f(x) is 0. Inference only.

    Args:
        x: [B, C, H, W] float32, bfloat16, float16 or float64; channels_last, or it is copied.
        weight: [O, C, k, k] of x's type, k 1 or 3; channels_last, or it is copied at every call.
        bias: [O], float32 or of x's type; so are gain, offset and time. float64 with float64 x and only then.
        stride: 1 or 2.
        padding: Pixels of zeros on each side, 0 or 1; k // 2 when None.
        gain: [B, C], together with offset; f(x) = x without.
        offset: [B, C], together with gain.
        act: Whether f has the SiLU.
        time: [B, O], a projection of the time.
        residual: y's shape and type.
        implementation: "aten" is PyTorch's convolution, on a GPU cuDNN's, with what is around it in passes of its own.
            "triton" is one kernel, on a GPU, for types up to 32 bits. "reference" computes in float32. "auto": "aten",
            since no GPU has measured where "triton" is faster.

    Returns:
        y: [B, O, H', W'] in x's type, channels_last.

    Raises:
        ValueError: shapes, dtypes, devices or numbers that do not fit, or tensors that require grad.
        RuntimeError: the named implementation is not available.
    """
    padding = _side(weight) // 2 if padding is None else padding
    call = Conv2dFusedCall(x, weight, bias, gain, offset, time, residual, stride, padding, act, want_statistics=False)
    return _run(call, implementation)[0]


def conv2d_fused_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | None = None,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    act: bool = True,
    time: Tensor | None = None,
    residual: Tensor | None = None,
    implementation: ConvImplementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv2d_fused`, and the statistics of its result for the norm that follows, taken while it is on chip.

    Returns:
        (y, mean [B, O], squares [B, O]): y as rounded to its type, its mean over the pixels and the sum of squared
        differences from that, float32, or float64 for float64. `norm_factors` takes both.

    Raises:
        ValueError: as `conv2d_fused`.
        RuntimeError: the named implementation is not available.
    """
    padding = _side(weight) // 2 if padding is None else padding
    call = Conv2dFusedCall(x, weight, bias, gain, offset, time, residual, stride, padding, act, want_statistics=True)
    return _run(call, implementation)


def norm_factors(
    mean: Tensor,
    squares: Tensor,
    num_pixels: int,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A group norm as one factor and one summand per channel: norm(x) = gain x + offset.

    Args:
        mean: Of each channel, [B, C].
        squares: Sums of squared differences from it, [B, C].
        num_pixels: Of a channel.
        weight: [C].
        bias: [C].
        groups: A divisor of C.
        eps: Added to the variance.
        scale: [B, C], together with shift: norm(x) (1 + scale) + shift instead.
        shift: [B, C].

    Returns:
        (gain, offset), each [B, C] in mean's type.

    Raises:
        ValueError: groups does not divide C, or one of scale and shift is missing.

    Source: Wu, He (2018), arXiv:1803.08494, eq. 1 and 7; merging: Chan, Golub, LeVeque (1983).
    """
    batch, channels = mean.shape
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the number of channels, {channels}, got {groups}")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together, got one of them: pass both or neither")
    if _are_for_the_kernel(mean, squares, weight, bias, scale, shift):
        launch = importlib.import_module("fastdiff.kernels.norm_factors").launch_norm_factors
        gain, offset = launch(mean, squares, num_pixels, weight, bias, groups, eps, scale, shift)
        return gain, offset
    size = channels // groups
    grouped = mean.reshape(batch, groups, size)
    centre = grouped.mean(dim=2, keepdim=True)
    total = squares.reshape(batch, groups, size).sum(dim=2, keepdim=True)
    total = total + num_pixels * (grouped - centre).square().sum(dim=2, keepdim=True)
    rstd = torch.rsqrt(total / (size * num_pixels) + eps)
    rstd, centre = (v.expand(-1, -1, size).reshape(batch, channels) for v in (rstd, centre))
    gain, offset = rstd * weight.to(mean.dtype), bias.to(mean.dtype).expand(batch, -1)
    if scale is not None and shift is not None:
        gain, offset = gain * (1 + scale.to(mean.dtype)), offset * (1 + scale.to(mean.dtype)) + shift.to(mean.dtype)
    return gain, offset - centre * gain


def _are_for_the_kernel(*tensors: Tensor | None) -> bool:
    """Whether a norm's factors are one launch: on a GPU, without gradients, where nobody looks on."""
    given = [v for v in tensors if v is not None]
    return (
        all(on_gpu(v) and v.dtype != torch.float64 for v in given)
        and given[0].dtype == given[1].dtype == torch.float32
        and has_triton()
        and is_unwatched()
        and all(type(v) in (Tensor, torch.nn.Parameter) for v in given)
        and not (torch.is_grad_enabled() and any(v.requires_grad for v in given))
    )


def _side(weight: Tensor) -> int:
    """Of the kernel; 0 for what `_check` refuses."""
    return weight.shape[-1] if weight.ndim == 4 else 0


def _run(call: Conv2dFusedCall, implementation: ConvImplementation) -> tuple[Tensor, Tensor, Tensor]:
    _check(call)
    if implementation in ("auto", "aten"):
        return _aten(call)
    if implementation not in ("reference", "triton"):
        raise ValueError(f"implementation must be 'auto', 'reference', 'aten' or 'triton', got {implementation!r}")
    y, mean, squares = dispatch(call, implementation)
    return y, mean, squares


def _check(call: Conv2dFusedCall) -> None:
    x, weight, bias, gain, offset, time, residual, stride, padding, _, _ = call
    if x.ndim != 4 or x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x must be [B, C, H, W] float32, bfloat16, float16 or float64, got {describe(x)}")
    batch, channels = x.shape[:2]
    fits = weight.ndim == 4 and weight.shape[1] == channels and tuple(weight.shape[2:]) in ((1, 1), (3, 3))
    if not fits or weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"weight must be {x.dtype} [O, {channels}, k, k] on {x.device} with k 1 or 3, got {describe(weight)}"
        )
    if stride not in (1, 2) or padding not in (0, 1):
        raise ValueError(f"stride must be 1 or 2 and padding 0 or 1, got {stride} and {padding}")
    if (gain is None) != (offset is None):
        raise ValueError("gain and offset must be given together, got one of them: pass both or neither")
    shape = _output_shape(call)
    if min(shape[2:]) < 1:
        raise ValueError(f"x must be at least as large as the kernel, got {list(x.shape)} for {list(weight.shape)}")
    vectors = {
        "bias": (bias, shape[1:2]),
        "gain": (gain, (batch, channels)),
        "offset": (offset, (batch, channels)),
        "time": (time, shape[:2]),
    }
    for name, (value, expected) in vectors.items():
        if value is None:
            continue
        if value.shape != expected or value.device != x.device:
            raise ValueError(f"{name} must be {list(expected)} on {x.device}, got {describe(value)}")
        if value.dtype not in (x.dtype, compute_dtype(x)):
            raise ValueError(f"{name} must be {x.dtype} or {compute_dtype(x)}, got {value.dtype}")
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype or residual.device != x.device):
        raise ValueError(f"residual must be {x.dtype} {list(shape)} on {x.device}, got {describe(residual)}")
    tensors = (x, weight, bias, gain, offset, time, residual)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
        raise ValueError("conv2d_fused is for inference only: call it under torch.no_grad(), or detach its inputs")


def _output_shape(call: Conv2dFusedCall) -> tuple[int, int, int, int]:
    side = _side(call.weight)
    height, width = ((size + 2 * call.padding - side) // call.stride + 1 for size in call.x.shape[2:])
    return call.x.shape[0], call.weight.shape[0], height, width


def _aten(call: Conv2dFusedCall) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, gain, offset, time, residual, stride, padding, act, want_statistics = call
    h = x.contiguous(memory_format=torch.channels_last)
    if gain is not None and offset is not None:
        dtype = compute_dtype(x)
        h = h.to(dtype) * gain[:, :, None, None].to(dtype) + offset[:, :, None, None].to(dtype)
        h = (F.silu(h) if act else h).to(x.dtype)
    y = F.conv2d(h, weight, None if bias is None else bias.to(x.dtype), stride, padding)
    y = y if time is None else (y + time[:, :, None, None]).to(x.dtype)
    y = y if residual is None else y + residual
    y = y.contiguous(memory_format=torch.channels_last)
    nothing = y.new_empty(0, dtype=compute_dtype(x))
    return (y, *reference.statistics(y)) if want_statistics else (y, nothing, nothing.clone())


def _reference(call: Conv2dFusedCall) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, squares = reference.conv2d_fused(call)
    y = y.to(call.x.dtype).contiguous(memory_format=torch.channels_last)
    return (y, mean, squares) if call.want_statistics else (y, mean.new_empty(0), mean.new_empty(0))


def _fake(call: Conv2dFusedCall) -> tuple[Tensor, Tensor, Tensor]:
    x, shape = call.x, _output_shape(call)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean = x.new_empty(shape[:2] if call.want_statistics else (0,), dtype=compute_dtype(x))
    return y, mean, torch.empty_like(mean)


define("conv2d_fused", Conv2dFusedCall, _reference, _fake, kernel="conv2d_fused")
