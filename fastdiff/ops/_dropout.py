"""The op `dropout`: its mask is a function of a seed, drawn again on the way back instead of kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._dispatch import (
    LIBRARY,
    Implementation,
    define,
    dispatch,
    has_extension,
)
from fastdiff.ops.reference.noise import torch_words
from fastdiff.process import noise
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype, memory_format

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
        raise ValueError(f"seed must be int64 [1] on {x.device}, got {seed.dtype} {list(seed.shape)} on {seed.device}")
    y: Tensor = dispatch("dropout", x, implementation, (x, seed, p))
    return y


def _last_kept(p: float) -> int:
    """The largest word that is kept; -1 for none."""
    return math.ceil((1 - p) * 2**32) - 1


def _reference(x: Tensor, seed: Tensor, p: float) -> Tensor:
    layout = memory_format(x)
    dense = x.permute(0, 2, 3, 1) if layout == torch.channels_last else x
    zero = torch.zeros(1, dtype=torch.int64, device=x.device)
    words = torch_words(int(seed) % 2**64, zero, x.numel(), noise.Stream.DROPOUT, zero)[0, : x.numel()]
    kept = (words <= _last_kept(p)).view(dense.shape)
    kept = kept.permute(0, 3, 1, 2) if layout == torch.channels_last else kept
    # What is dropped is 0, whatever it was.
    y = torch.where(kept, x.to(compute_dtype(x)) * (1 / max(1 - p, 2**-32)), 0)
    return y.to(x.dtype).contiguous(memory_format=layout)


def _fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _cpu(x: Tensor, seed: Tensor, p: float) -> Tensor:
    y, last = _fake(x, seed, p), _last_kept(p)
    if last < 0 or x.numel() == 0:
        return y.zero_()
    layout = memory_format(x)
    torch.ops.fastdiff.dropout_out(
        x.contiguous(memory_format=layout), seed, noise.Stream.DROPOUT, last, 1 / max(1 - p, 2**-32), y
    )
    return y


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, seed, p = inputs
    ctx.save_for_backward(seed)
    ctx.p, ctx.layout = p, memory_format(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    # Elements count in memory order, so the gradient comes in x's.
    grad = grad.contiguous(memory_format=ctx.layout)
    return torch.ops.fastdiff.dropout(grad, *ctx.saved_tensors, ctx.p), None, None


define("dropout", "(Tensor x, Tensor seed, float p) -> Tensor", _reference, _fake)
if has_extension():
    LIBRARY.impl("dropout", _cpu, "CPU")
torch.library.register_autograd("fastdiff::dropout", _backward, setup_context=_setup)
