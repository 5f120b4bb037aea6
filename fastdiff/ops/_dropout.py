"""The op `dropout`: a sample's mask is a function of a seed and its id, drawn again on the way back instead of kept."""

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

LIBRARY.define(
    "dropout_out(Tensor x, Tensor seed, Tensor? sample_ids, int stream, int last_kept, float scale, Tensor(a!) y) -> ()"
)


def dropout(
    x: Tensor,
    p: float,
    seed: Tensor,
    *,
    sample_ids: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Zero each element with probability p, and multiply the others by 1 / (1 - p).

    Element e of a sample, counted in its memory order (channels_last: H, W, C), is kept where its word of the noise
    contract (the sample's id, stream DROPOUT, row 0) is below (1 - p) 2^32. So a sample's mask depends on seed, id,
    shape and layout alone, and not on the batch around it; its probability is exact to 2^-32.

    Args:
        x: [B, ...] float32, bfloat16, float16 or float64.
        p: In [0, 1].
        seed: int64 [1], 64 bits of any value, such as `torch.empty(1, dtype=torch.int64).random_()`.
        sample_ids: int64 [B], 64 bits of any value; 0..B-1 when None.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        Of x's shape, type and layout (channels_last or contiguous).

    Raises:
        ValueError: a type or number that does not fit.

    Source: Srivastava et al. (2014), JMLR 15, 1929.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if x.ndim < 1:
        raise ValueError("x must have a batch dimension, got a scalar")
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if seed.shape != (1,) or seed.dtype != torch.int64 or seed.device != x.device:
        raise ValueError(f"seed must be int64 [1] on {x.device}, got {describe(seed)}")
    if sample_ids is not None and (
        sample_ids.shape != x.shape[:1] or sample_ids.dtype != torch.int64 or sample_ids.device != x.device
    ):
        raise ValueError(f"sample_ids must be int64 [{x.shape[0]}] on {x.device}, got {describe(sample_ids)}")
    y: Tensor = dispatch(DropoutCall(x, seed, p, sample_ids), implementation)
    return y


def _fake(call: DropoutCall) -> Tensor:
    x = call.x
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _cpu(call: DropoutCall) -> Tensor:
    y, last = _fake(call), last_kept(call.p)
    if last < 0 or y.numel() == 0:
        return y.zero_()
    x = call.x.contiguous(memory_format=memory_format(call.x))
    ids = None if call.sample_ids is None else call.sample_ids.contiguous()
    torch.ops.fastdiff.dropout_out(x, call.seed, ids, Stream.DROPOUT, last, factor_of_kept(call.p), y)
    return y


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    call = DropoutCall(*inputs)
    ctx.save_for_backward(call.seed, call.sample_ids)
    ctx.p, ctx.layout = call.p, memory_format(call.x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Elements count in memory order, so the gradient comes in x's.
    grad = grad.contiguous(memory_format=ctx.layout)
    seed, sample_ids = ctx.saved_tensors
    return gradients(DropoutCall, x=dispatch(DropoutCall(grad, seed, ctx.p, sample_ids)))


define("dropout", DropoutCall, reference.dropout, _fake, cpu=_cpu, kernel="dropout")
differentiate(DropoutCall, _backward, _setup)
