"""The op `diffuse`: noising, and the training target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.calls import DiffuseCall
from fastdiff.ops._arguments import check_index, check_table, check_times, noise_arguments, signed
from fastdiff.ops._dispatch import Implementation, define, differentiate, dispatch, gradients, wanted_gradients
from fastdiff.ops.reference import diffuse as reference
from fastdiff.process.noise import MAX_ROW, Stream
from fastdiff.tensors import FLOAT_DTYPES, memory_format, per_sample


def diffuse(
    x0: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    row: int | Tensor = 0,
    stream: int = Stream.TRAIN_NOISE,
    noise: Tensor | None = None,
    levels: int = 256,
    dtype: torch.dtype | None = None,
    target: bool = True,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Noise images and give the training target, in one pass: x_t = c0 x_0 + c1 z, target = c2 x_0 + c3 z.

    Args:
        x0: [B, ...] float32, bfloat16, float16 or float64 in [-1, 1], or uint8 in [0, levels), scaled to [-1, 1].
        t: Timesteps, int64 [B], 0-based, in [0, T). On a GPU a t out of range gives NaN, since raising would wait
            for the device; everywhere else it raises.
        table: [T, 4] float32 (float64 for float64 images) on x0's device, from `Diffusion.noising_table`.
        seed: In [0, 2^64); with `sample_ids`, `row` and `stream` it fixes the noise (see `fastdiff.process.noise`).
        sample_ids: int64 [B]; 0..B-1 when None.
        row: Counter of the draw, for example the training step: one number or int64 [B], in [0, 2^28), which is not
            checked for a tensor on a GPU.
        stream: What the noise is for, see `Stream`.
        noise: Standard normal noise of x0's shape to use instead.
        levels: Number of values of uint8 data, 2 to 256.
        dtype: Of the results; x0's, or float32 for uint8.
        target: False leaves the target out (an empty tensor).
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        (x_t, target), both of x0's shape and memory format.

    Raises:
        ValueError: shapes, dtypes or ranges that do not fit.
        IndexError: t outside [0, T) or a tensor of rows outside [0, 2^28), on the CPU.
        RuntimeError: the named implementation is not available.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 4 and algorithm 1.
    """
    if x0.dtype != torch.uint8 and x0.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x0 must be uint8 or floating point, got {x0.dtype}")
    if x0.ndim < 1:
        raise ValueError("x0 must have a batch dimension, got a scalar")
    check_times(t, x0)
    check_table("table", table, x0, "T", 4, "Diffusion.noising_table")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be in [2, 256], got {levels}")
    if not 0 <= int(stream) < 16:
        raise ValueError(f"stream must be in [0, 16), got {stream}")
    dtype = dtype or (torch.float32 if x0.dtype == torch.uint8 else x0.dtype)
    if dtype not in FLOAT_DTYPES or (dtype == torch.float64) != (x0.dtype == torch.float64):
        raise ValueError(f"dtype {dtype} does not fit images of {x0.dtype}: float64 goes with float64 only")
    ids, row = noise_arguments(x0, noise, sample_ids, row)
    call = DiffuseCall(x0, t, table, noise, ids, row, signed(seed), int(stream), levels, dtype, target)
    return dispatch(call, implementation)  # type: ignore[no-any-return]


def _check_indices(call: DiffuseCall) -> None:
    check_index("t", call.t, call.table.shape[0])
    check_index("row", call.row, MAX_ROW)


def _reference(call: DiffuseCall) -> tuple[Tensor, Tensor]:
    _check_indices(call)
    layout = memory_format(call.x0)
    x_t, target = (v.to(call.dtype).contiguous(memory_format=layout) for v in reference.diffuse(call))
    return x_t, target if call.want_target else x_t.new_empty(0)


def _fake(call: DiffuseCall) -> tuple[Tensor, Tensor]:
    x_t = torch.empty_like(call.x0, dtype=call.dtype, memory_format=memory_format(call.x0))
    return x_t, torch.empty_like(x_t) if call.want_target else x_t.new_empty(0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    call = DiffuseCall(*inputs)
    ctx.save_for_backward(call.t, call.table)
    ctx.image_dtype, ctx.noise_dtype = call.x0.dtype, None if call.noise is None else call.noise.dtype
    ctx.want_target = call.want_target


def _backward(ctx: Any, grad_x_t: Tensor, grad_target: Tensor) -> tuple[Tensor | None, ...]:
    """Both results are linear in x_0 and z, so the gradients are the coefficients times those of the results."""
    t, table = ctx.saved_tensors

    def back(first: int, second: int, dtype: torch.dtype) -> Tensor:
        def c(i: int) -> Tensor:
            return per_sample(table[t, i], grad_x_t)

        grad = c(first) * grad_x_t.to(table.dtype)
        if ctx.want_target:
            grad = grad + c(second) * grad_target.to(table.dtype)
        return grad.to(dtype)

    wanted = wanted_gradients(DiffuseCall, ctx)
    return gradients(
        DiffuseCall,
        x0=back(0, 2, ctx.image_dtype) if "x0" in wanted and ctx.image_dtype != torch.uint8 else None,
        noise=back(1, 3, ctx.noise_dtype) if "noise" in wanted else None,
    )


define("diffuse", DiffuseCall, _reference, _fake, check_indices=_check_indices, kernel="diffuse")
differentiate(DiffuseCall, _backward, _setup)
