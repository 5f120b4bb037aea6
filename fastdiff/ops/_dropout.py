"""The op `dropout`: its mask is a function of a seed, drawn again on the way back instead of kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.calls import DropoutCall
from fastdiff.ops._arguments import describe
from fastdiff.ops._dispatch import LIBRARY, Implementation, define, differentiate, dispatch, gradients
from fastdiff.ops.reference import dropout as reference
from fastdiff.process.noise import Stream, factor_of_kept, last_kept
from fastdiff.tensors import FLOAT_DTYPES, memory_format

LIBRARY.define("dropout_out(Tensor x, Tensor seed, int stream, int last_kept, float scale, Tensor(a!) y) -> ()")


def dropout(x: Tensor, p: float, seed: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """Zero each element with probability p, and multiply the others by 1 / (1 - p).

    Element e, counted in memory order, is kept where its word of the noise contract (stream DROPOUT, sample 0, row 0)
    is below (1 - p) 2^32. So a mask depends on seed and layout alone; its probability is exact to 2^-32.

    Args:
        x: Any shape, float32, bfloat16, float16 or float64.
        p: In [0, 1].
        seed: int64 [1], 64 bits of any value, such as `torch.empty(1, dtype=torch.int64).random_()`.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        Of x's shape, type and layout (channels_last or contiguous).

    Raises:
        ValueError: a type or number that does not fit.

    Source: Srivastava et al. (2014), JMLR 15, 1929.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if seed.shape != (1,) or seed.dtype != torch.int64 or seed.device != x.device:
        raise ValueError(f"seed must be int64 [1] on {x.device}, got {describe(seed)}")
    y: Tensor = dispatch(DropoutCall(x, seed, p), implementation)
    return y


def _fake(call: DropoutCall) -> Tensor:
    x = call.x
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _cpu(call: DropoutCall) -> Tensor:
    y, last = _fake(call), last_kept(call.p)
    if last < 0 or y.numel() == 0:
        return y.zero_()
    x = call.x.contiguous(memory_format=memory_format(call.x))
    torch.ops.fastdiff.dropout_out(x, call.seed, Stream.DROPOUT, last, factor_of_kept(call.p), y)
    return y


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    call = DropoutCall(*inputs)
    ctx.save_for_backward(call.seed)
    ctx.p, ctx.layout = call.p, memory_format(call.x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Elements count in memory order, so the gradient comes in x's.
    grad = grad.contiguous(memory_format=ctx.layout)
    (seed,) = ctx.saved_tensors
    return gradients(DropoutCall, x=dispatch(DropoutCall(grad, seed, ctx.p)))


define("dropout", DropoutCall, reference.dropout, _fake, cpu=_cpu, kernel="dropout")
differentiate(DropoutCall, _backward, _setup)
