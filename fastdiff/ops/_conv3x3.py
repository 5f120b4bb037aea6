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
from fastdiff.ops.reference import conv3x3 as reference

MIN_SIZE = 4
# Channels come in whole vectors.
VECTOR = 16

LIBRARY.define("conv3x3_out(Tensor x, Tensor weight, Tensor? bias, bool transposed, Tensor(a!) out) -> ()")
LIBRARY.define("conv3x3_weight_grad(Tensor x, Tensor grad, Tensor(a!) out) -> ()")


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of 3x3 pixels, stride 1, with one pixel of zeros around the image.

    On the CPU, float32 is computed by Winograd's F(4x4, 3x3), or F(2x2, 3x3) below 8 pixels, in C++: result, gradient
    of the input and gradient of the weights. They are within 3e-5 of float64, relative to the largest value, where
    direct sums are within 2e-6. An element is the same sum in the same order whatever the number of threads.
    Everything else (other types and devices, under autocast, images below 4x4, channels not in sixteens or none, no
    extension) is `torch.nn.functional.conv2d`.

    Args:
        x: [B, C_in, H, W]; channels_last is not copied.
        weight: [C_out, C_in, 3, 3].
        bias: [C_out], or None.

    Returns:
        [B, C_out, H, W], channels_last where Winograd is used. It has no second derivative there.

    Raises:
        RuntimeError: shapes that do not fit, or a second derivative was asked for.

    Source: Lavin and Gray (2016), arXiv:1509.09308, section 4.
    """
    if _fits(x, weight, bias):
        y: Tensor = dispatch(Conv3x3Call(x, weight, bias))
        return y
    return F.conv2d(x, weight, bias, padding=1)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        has_extension()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and weight.shape[0] % VECTOR == weight.shape[1] % VECTOR == 0
        and weight.numel() > 0
        and min(x.shape[2:]) >= MIN_SIZE
        and not torch.is_autocast_enabled("cpu")
    )


def _fake(call: Conv3x3Call) -> Tensor:
    x, weight, _ = call
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _cpu(call: Conv3x3Call) -> Tensor:
    out, bias = _fake(call), None if call.bias is None else call.bias.contiguous()
    torch.ops.fastdiff.conv3x3_out(_channels_last(call.x), call.weight, bias, False, out)
    return out


def _backward_fake(call: Conv3x3BackwardCall) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last
    dx = torch.empty_like(call.x, memory_format=layout) if call.want_input else call.x.new_empty(0)
    return dx, torch.empty_like(call.weight, memory_format=layout)


def _backward_cpu(call: Conv3x3BackwardCall) -> tuple[Tensor, Tensor]:
    dx, dweight = _backward_fake(call)
    grad = _channels_last(call.grad)
    if call.want_input:
        torch.ops.fastdiff.conv3x3_out(grad, call.weight, None, True, dx)
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
    dx, dweight = dispatch(Conv3x3BackwardCall(grad, x, weight, "x" in wanted))
    return gradients(
        Conv3x3Call,
        x=dx if "x" in wanted else None,
        weight=dweight if "weight" in wanted else None,
        bias=grad.sum(dim=(0, 2, 3)) if "bias" in wanted else None,
    )


define("conv3x3", Conv3x3Call, reference.conv3x3, _fake, cpu=_cpu)
define("conv3x3_backward", Conv3x3BackwardCall, reference.conv3x3_backward, _backward_fake, cpu=_backward_cpu)
differentiate(Conv3x3Call, _backward, _setup)
refuse_second_derivative("conv3x3_backward", "conv3x3 has")
