"""The op `conv3x3`: the 3x3 convolutions of training on the CPU, by Winograd in all three directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import Conv3x3BackwardCall, Conv3x3Call
from fastdiff.ops._dispatch import (
    LIBRARY,
    define,
    differentiate,
    dispatch,
    gradients,
    has_extension,
    refuse_second_derivative,
    wanted_gradients,
)
from fastdiff.ops._linear import column_sums
from fastdiff.ops.reference import conv3x3 as reference

MIN_SIZE = 4
# Channels come in whole vectors.
VECTOR = 16

LIBRARY.define(
    "conv3x3_out(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool transposed, Tensor(a!) out) -> ()"
)
LIBRARY.define("conv3x3_weight_grad(Tensor x, Tensor grad, Tensor(a!) out) -> ()")


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """A convolution of 3x3 pixels, and what is added to its result.

    On the CPU, float32 is computed by Winograd's F(4x4, 3x3), or F(2x2, 3x3) below 8 pixels, in C++: result, gradient
    of the input and gradient of the weights. They are within 3e-5 of float64, relative to the largest value, where
    direct sums are within 2e-6. An element is the same sum in the same order whatever the number of threads.
    Channels are filled up to sixteens, and images to 4x4, with zeros; of a stride of 2 all pixels are computed, which
    costs what direct sums would. Everything else (other types and devices, under autocast, nothing to sum, no
    extension) is `torch.nn.functional.conv2d`.

    Args:
        x: [B, C_in, H, W]; channels_last is not copied.
        weight: [C_out, C_in, 3, 3].
        bias: [C_out], or None.
        stride: At least 1.
        padding: Pixels of zeros around the image; with more than 1 it is PyTorch's.
        residual: [B, C_out, H', W'] to be added, or None.

    Returns:
        [B, C_out, H', W'], channels_last where Winograd is used. It has no second derivative there.

    Raises:
        RuntimeError: shapes that do not fit, or a second derivative was asked for.

    Source: Lavin and Gray (2016), arXiv:1509.09308, section 4.
    """
    if not _fits(x, weight, bias) or padding not in (0, 1) or min(x.shape[2:]) + 2 * padding < 3:
        return _plus(F.conv2d(x, weight, bias, stride=stride, padding=padding), residual)
    channels_out, (height, width) = weight.shape[0], x.shape[2:]
    missing_in, missing_out = -weight.shape[1] % VECTOR, -channels_out % VECTOR
    below, behind = max(0, MIN_SIZE - height), max(0, MIN_SIZE - width)
    if missing_in or below or behind:
        x = F.pad(x, (0, behind, 0, below, 0, missing_in))
    if missing_in or missing_out:
        weight = F.pad(weight, (0, 0, 0, 0, 0, missing_in, 0, missing_out))
    if missing_out and bias is not None:
        bias = F.pad(bias, (0, missing_out))
    is_cut = (stride, padding) != (1, 1) or missing_out > 0 or below > 0 or behind > 0
    # Anything else would be refused or rounded otherwise.
    shape = (x.shape[0], channels_out, height, width)
    joins = residual is not None and residual.dtype == torch.float32 and residual.shape == shape and not is_cut
    y: Tensor = dispatch(Conv3x3Call(x, weight, bias, residual if joins else None))
    if is_cut:
        # Without padding the first and the last pixel have no result.
        rows, columns = (slice(1 - padding, size - 1 + padding, stride) for size in (height, width))
        y = y[:, :channels_out, rows, columns].contiguous(memory_format=torch.channels_last)
    return y if joins else _plus(y, residual)


def _plus(y: Tensor, residual: Tensor | None) -> Tensor:
    return y if residual is None else y + residual


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        has_extension()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and weight.numel() > 0
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _fake(call: Conv3x3Call) -> Tensor:
    x, weight, _, _ = call
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _cpu(call: Conv3x3Call) -> Tensor:
    out, bias = _fake(call), None if call.bias is None else call.bias.contiguous()
    residual = None if call.residual is None else _channels_last(call.residual)
    torch.ops.fastdiff.conv3x3_out(_channels_last(call.x), call.weight, bias, residual, False, out)
    return out


def _backward_fake(call: Conv3x3BackwardCall) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last
    dx = torch.empty_like(call.x, memory_format=layout) if call.want_input else call.x.new_empty(0)
    return dx, torch.empty_like(call.weight, memory_format=layout)


def _backward_cpu(call: Conv3x3BackwardCall) -> tuple[Tensor, Tensor]:
    dx, dweight = _backward_fake(call)
    grad = _channels_last(call.grad)
    if call.want_input:
        torch.ops.fastdiff.conv3x3_out(grad, call.weight, None, None, True, dx)
    torch.ops.fastdiff.conv3x3_weight_grad(_channels_last(call.x), grad, dweight)
    return dx, dweight


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    call = Conv3x3Call(*inputs)
    ctx.save_for_backward(call.x, call.weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = wanted_gradients(Conv3x3Call, ctx)
    # Once: that of a concatenation comes as a part of a larger tensor, and is read three times or more.
    grad = _channels_last(grad)
    dx, dweight = dispatch(Conv3x3BackwardCall(grad, x, weight, "x" in wanted))
    return gradients(
        Conv3x3Call,
        x=dx if "x" in wanted else None,
        weight=dweight if "weight" in wanted else None,
        bias=column_sums(grad.permute(0, 2, 3, 1).flatten(0, 2)) if "bias" in wanted else None,
        residual=grad if "residual" in wanted else None,
    )


define("conv3x3", Conv3x3Call, reference.conv3x3, _fake, cpu=_cpu)
define("conv3x3_backward", Conv3x3BackwardCall, reference.conv3x3_backward, _backward_fake, cpu=_backward_cpu)
differentiate(Conv3x3Call, _backward, _setup)
refuse_second_derivative("conv3x3_backward", "conv3x3 has")
