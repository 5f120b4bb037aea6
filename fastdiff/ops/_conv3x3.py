"""The op `conv3x3`: the 3x3 convolutions of training on the CPU, by Winograd in all three directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops._dispatch import LIBRARY, define, has_extension

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
    Everything else (other types and devices, under autocast, images below 4x4, channels not in sixteens, no extension)
    is `torch.nn.functional.conv2d`.

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
        y: Tensor = torch.ops.fastdiff.conv3x3(x, weight, bias)
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
        and min(x.shape[2:]) >= MIN_SIZE
        and not torch.is_autocast_enabled("cpu")
    )


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _fake(x, weight, bias)
    torch.ops.fastdiff.conv3x3_out(_last(x), weight, None if bias is None else bias.contiguous(), False, out)
    return out


def _backward_reference(grad: Tensor, x: Tensor, weight: Tensor, want_input: bool) -> tuple[Tensor, Tensor]:
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [want_input, True, False]
    )
    last = torch.channels_last
    return x.new_empty(0) if dx is None else dx.contiguous(memory_format=last), dweight.contiguous(memory_format=last)


def _backward_fake(grad: Tensor, x: Tensor, weight: Tensor, want_input: bool) -> tuple[Tensor, Tensor]:
    last = torch.channels_last
    dx = torch.empty_like(x, memory_format=last) if want_input else x.new_empty(0)
    return dx, torch.empty_like(weight, memory_format=last)


def _backward_cpu(grad: Tensor, x: Tensor, weight: Tensor, want_input: bool) -> tuple[Tensor, Tensor]:
    dx, dweight = _backward_fake(grad, x, weight, want_input)
    grad = _last(grad)
    if want_input:
        torch.ops.fastdiff.conv3x3_out(grad, weight, None, True, dx)
    torch.ops.fastdiff.conv3x3_weight_grad(_last(x), grad, dweight)
    return dx, dweight


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants = ctx.needs_input_grad
    dx, dweight = torch.ops.fastdiff.conv3x3_backward(grad, x, weight, wants[0])
    dbias = grad.sum(dim=(0, 2, 3)) if ctx.has_bias and wants[2] else None
    return dx if wants[0] else None, dweight if wants[1] else None, dbias


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("conv3x3 has no second derivative: take the first without create_graph")


define("conv3x3", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _reference, _fake)
define(
    "conv3x3_backward",
    "(Tensor grad, Tensor x, Tensor weight, bool want_input) -> (Tensor, Tensor)",
    _backward_reference,
    _backward_fake,
)
if has_extension():
    LIBRARY.impl("conv3x3", _cpu, "CPU")
    LIBRARY.impl("conv3x3_backward", _backward_cpu, "CPU")
torch.library.register_autograd("fastdiff::conv3x3", _backward, setup_context=_setup)
torch.library.register_autograd("fastdiff::conv3x3_backward", _no_second_derivative)
