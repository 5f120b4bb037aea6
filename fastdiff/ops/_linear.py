"""The op `linear`: the linear layers of training on the CPU, whose sums do not depend on the number of threads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import ColumnSumsCall, LinearBackwardCall, LinearCall
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
from fastdiff.ops.reference import linear as reference

LIBRARY.define(
    "linear_out(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool transposed, Tensor(a!) out) -> ()"
)
LIBRARY.define("linear_weight_grad(Tensor x, Tensor grad, Tensor(a!) out) -> ()")
LIBRARY.define("column_sums_out(Tensor x, Tensor(a!) out) -> ()")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, residual: Tensor | None = None) -> Tensor:
    """A linear layer, x weight^T + bias, and what is added to its result.

    On the CPU, float32 is computed in C++: result, gradient of the input, of the weights and of the bias. An element is
    the same sum in the same order whatever the number of threads. Everything else (other types and devices, under
    autocast, no extension, nothing to multiply) is `torch.nn.functional.linear`.

    Args:
        x: [..., C_in].
        weight: [C_out, C_in].
        bias: [C_out], or None.
        residual: [..., C_out] to be added, or None.

    Returns:
        [..., C_out]. It has no second derivative where it is computed in C++.

    Raises:
        RuntimeError: shapes that do not fit, or a second derivative was asked for.
    """
    if not _fits(x, weight, bias):
        y = F.linear(x, weight, bias)
        return y if residual is None else y + residual
    shape = (*x.shape[:-1], weight.shape[0])
    # Anything else would be refused or rounded otherwise.
    joins = residual is not None and residual.dtype == torch.float32 and residual.shape == shape
    added = residual.reshape(-1, shape[-1]) if joins and residual is not None else None
    product: Tensor = dispatch(LinearCall(x.reshape(-1, x.shape[-1]), weight, bias, added))
    y = product.view(shape)
    return y if joins or residual is None else y + residual


def column_sums(x: Tensor) -> Tensor:
    """Sums over the rows of x [N, C], [C]; in float32 on the CPU the same for any number of threads.

    They have no derivative.
    """
    return dispatch(ColumnSumsCall(x))  # type: ignore[no-any-return]


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        has_extension()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.ndim == 2
        and (bias is None or (bias.dtype == torch.float32 and bias.shape == weight.shape[:1]))
        and x.ndim >= 1
        and x.shape[-1] == weight.shape[1]
        and weight.numel() > 0
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _fake(call: LinearCall) -> Tensor:
    return call.x.new_empty(call.x.shape[0], call.weight.shape[0])


def _cpu(call: LinearCall) -> Tensor:
    out, bias = _fake(call), None if call.bias is None else call.bias.contiguous()
    residual = None if call.residual is None else call.residual.contiguous()
    torch.ops.fastdiff.linear_out(call.x.contiguous(), call.weight, bias, residual, False, out)
    return out


def _backward_fake(call: LinearBackwardCall) -> tuple[Tensor, Tensor]:
    dx = call.x.new_empty(call.x.shape if call.want_input else 0)
    return dx, call.x.new_empty(call.weight.shape)


def _backward_cpu(call: LinearBackwardCall) -> tuple[Tensor, Tensor]:
    dx, dweight = _backward_fake(call)
    grad = call.grad.contiguous()
    if call.want_input:
        torch.ops.fastdiff.linear_out(grad, call.weight, None, None, True, dx)
    torch.ops.fastdiff.linear_weight_grad(call.x.contiguous(), grad, dweight)
    return dx, dweight


def _column_sums_fake(call: ColumnSumsCall) -> Tensor:
    return call.x.new_empty(call.x.shape[1])


def _column_sums_cpu(call: ColumnSumsCall) -> Tensor:
    if call.x.dtype != torch.float32:
        return reference.column_sums(call)
    out = _column_sums_fake(call)
    torch.ops.fastdiff.column_sums_out(call.x.contiguous(), out)
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    call = LinearCall(*inputs)
    ctx.save_for_backward(call.x, call.weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad = grad.contiguous()
    wanted = wanted_gradients(LinearCall, ctx)
    dx, dweight = dispatch(LinearBackwardCall(grad, x, weight, "x" in wanted))
    return gradients(
        LinearCall,
        x=dx if "x" in wanted else None,
        weight=dweight if "weight" in wanted else None,
        bias=column_sums(grad) if "bias" in wanted else None,
        residual=grad if "residual" in wanted else None,
    )


define("linear", LinearCall, reference.linear, _fake, cpu=_cpu)
define("linear_backward", LinearBackwardCall, reference.linear_backward, _backward_fake, cpu=_backward_cpu)
define("column_sums", ColumnSumsCall, reference.column_sums, _column_sums_fake, cpu=_column_sums_cpu)
differentiate(LinearCall, _backward, _setup)
refuse_second_derivative("linear_backward", "linear has")
