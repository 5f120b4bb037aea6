"""The op `posterior_mean`: the mean of the reverse step, from the network's output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.calls import PosteriorMeanCall
from fastdiff.ops._arguments import check_index, check_precision, check_table, check_times, describe
from fastdiff.ops._dispatch import Implementation, define, differentiate, dispatch, gradients, wanted_gradients
from fastdiff.ops.reference import posterior_mean as reference
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype, memory_format, per_sample


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
    check_precision("model_output", model_output.dtype, "x_t", x_t.dtype)
    check_times(t, x_t)
    check_table("table", table, x_t, "T", 4, "Diffusion.posterior_table")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip must be finite and above 0, or None, got {clip}")
    call = PosteriorMeanCall(x_t, model_output, t, table, None if clip is None else float(clip))
    mean: Tensor = dispatch(call, implementation)
    return mean


def _check_indices(call: PosteriorMeanCall) -> None:
    check_index("t", call.t, call.table.shape[0])


def _reference(call: PosteriorMeanCall) -> Tensor:
    _check_indices(call)
    mean = reference.posterior_mean(call)
    return mean.to(call.x_t.dtype).contiguous(memory_format=memory_format(call.x_t))


def _fake(call: PosteriorMeanCall) -> Tensor:
    return torch.empty_like(call.x_t, memory_format=memory_format(call.x_t))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_t, model_output, t, table, ctx.clip = PosteriorMeanCall(*inputs)
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
    wanted = wanted_gradients(PosteriorMeanCall, ctx)
    grad_x = (c1 * wide + c2 * grad_x0).to(ctx.dtypes[0]) if "x_t" in wanted else None
    grad_output = (c3 * grad_x0).to(ctx.dtypes[1]) if "model_output" in wanted else None
    return gradients(PosteriorMeanCall, x_t=grad_x, model_output=grad_output)


define("posterior_mean", PosteriorMeanCall, _reference, _fake, check_indices=_check_indices, kernel="posterior_mean")
differentiate(PosteriorMeanCall, _backward, _setup)
