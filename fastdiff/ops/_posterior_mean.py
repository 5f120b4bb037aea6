"""The op `posterior_mean`: the mean of the reverse step, from the network's output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._arguments import check_index, describe, dtype_name
from fastdiff.ops._dispatch import Implementation, define, dispatch
from fastdiff.ops.reference import posterior_mean as reference
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype, memory_format, per_sample

_SCHEMA = "(Tensor x_t, Tensor model_output, Tensor t, Tensor table, float? clip) -> Tensor"


def posterior_mean(
    x_t: Tensor,
    model_output: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    clip: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0) for the x_0 that the network predicts, in one pass.

        x_0 = clamp(c2 x_t + c3 m, -clip, clip)
        mean = c0 x_0 + c1 x_t

    Args:
        x_t: [B, ...] float32, bfloat16, float16 or float64.
        model_output: m, x_t's shape and any of these types, but float64 with float64 x_t and only then. It is eps, x_0,
            v or the score, as `table` was made for.
        t: Timesteps, int64 [B], 0-based, in [0, T). On a GPU a t out of range gives NaN, since raising would wait
            for the device; everywhere else it raises.
        table: [T, 4] float32 (float64 for float64 x_t) on x_t's device, from `Diffusion.posterior_table`.
        clip: Bound on x_0, above 0; None for none.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        The mean in x_t's shape, type and memory format. x_t and the output have gradients; where x_0 is clipped it has
        none.

    Raises:
        ValueError: shapes, dtypes, devices or values that do not fit.
        IndexError: t outside [0, T), on the CPU.
        RuntimeError: the named implementation is not available.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 7.
    """
    if x_t.dtype not in FLOAT_DTYPES or x_t.ndim < 1:
        raise ValueError(f"x_t must be [B, ...] float32, bfloat16, float16 or float64, got {describe(x_t)}")
    if model_output.shape != x_t.shape or model_output.device != x_t.device:
        raise ValueError(
            f"model_output must be {list(x_t.shape)} on {x_t.device}, as x_t, got {describe(model_output)}"
        )
    if model_output.dtype not in FLOAT_DTYPES or (model_output.dtype == torch.float64) != (x_t.dtype == torch.float64):
        raise ValueError(
            f"model_output of {model_output.dtype} does not fit x_t of {x_t.dtype}: float64 goes with float64 only"
        )
    if t.shape != x_t.shape[:1] or t.dtype != torch.int64 or t.device != x_t.device:
        raise ValueError(f"t must be int64 [{x_t.shape[0]}] on {x_t.device}, got {describe(t)}")
    fits = table.ndim == 2 and table.shape[1] == 4 and table.device == x_t.device
    if not fits or table.dtype != compute_dtype(x_t):
        raise ValueError(
            f"table must be {dtype_name(x_t)} [T, 4] on {x_t.device} (from Diffusion.posterior_table), "
            f"got {describe(table)}"
        )
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip must be finite and above 0, or None, got {clip}")
    arguments = (x_t, model_output, t, table, None if clip is None else float(clip))
    mean: Tensor = dispatch("posterior_mean", x_t, implementation, arguments)
    return mean


def _reference(x_t: Tensor, model_output: Tensor, t: Tensor, table: Tensor, clip: float | None) -> Tensor:
    check_index("t", t, table.shape[0])
    mean = reference.posterior_mean(x_t, model_output, t, table, clip)
    return mean.to(x_t.dtype).contiguous(memory_format=memory_format(x_t))


def _fake(x_t: Tensor, model_output: Tensor, t: Tensor, table: Tensor, clip: float | None) -> Tensor:
    return torch.empty_like(x_t, memory_format=memory_format(x_t))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_t, model_output, t, table, ctx.clip = inputs
    # Without a clip it is linear: the coefficients are all that its gradient needs.
    kept = (None, None) if ctx.clip is None else (x_t, model_output)
    ctx.save_for_backward(*kept, t, table)
    ctx.dtypes = x_t.dtype, model_output.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x_t, model_output, t, table = ctx.saved_tensors
    dtype = compute_dtype(grad)
    c0, c1, c2, c3 = (per_sample(table[t, i].to(dtype), grad) for i in range(4))
    wide = grad.to(dtype)
    grad_x0 = c0 * wide
    if x_t is not None:
        x0 = c2 * x_t.to(dtype) + c3 * model_output.to(dtype)
        grad_x0 = torch.where(x0.abs() <= ctx.clip, grad_x0, 0)
    grad_x = (c1 * wide + c2 * grad_x0).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
    grad_output = (c3 * grad_x0).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
    return grad_x, grad_output, None, None, None


define(
    "posterior_mean",
    _SCHEMA,
    _reference,
    _fake,
    lambda arguments: check_index("t", arguments[2], arguments[3].shape[0]),
)
torch.library.register_autograd("fastdiff::posterior_mean", _backward, setup_context=_setup)
