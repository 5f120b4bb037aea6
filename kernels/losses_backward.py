"""Gradients of the losses on a GPU: every tensor read once, the output's gradient written once."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import BoundLossBackwardCall, MseBackwardCall
from fastdiff.kernels.bound_terms import bin_slopes, density_slopes, load_rows, normal_kl_slopes, output_places
from fastdiff.kernels.launching import cdiv
from fastdiff.kernels.tiles import BLOCK, contiguous_tile
from fastdiff.tensors import memory_format


@triton.jit(do_not_specialize=["num_timesteps", "num_tiles"])
def _losses_backward_kernel(
    output_ptr,
    target_ptr,
    x0_ptr,
    x_t_ptr,
    t_ptr,
    table_ptr,
    grad_mse_ptr,
    grad_bound_ptr,
    grad_ptr,
    mse_scale,
    bound_scale,
    num_timesteps,
    num_elements,
    num_tiles,
    CLIP: tl.constexpr,
    LEARNED: tl.constexpr,
    DETACH: tl.constexpr,
    DISCRETE: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of the output from those of the two results of `_losses_kernel`, whose arguments these are.

    The first half gets grad_mse mse_scale (m - target), where grad_mse_ptr is given, and, where grad_bound_ptr is and
    not DETACH, grad_bound bound_scale pm d term / d mu, 0 where mu is clipped. The second half, where LEARNED, gets
    grad_bound bound_scale (log_max - log_min) / 2 d term / d logvar. For the derivatives see
    `fastdiff.ops.reference.losses`. grad_mse, grad_bound: float32 [B]; grad: as the output.

    Bytes: every element of what the forward reads read once, of grad written once. Floor: those bytes / bandwidth, 12
    per element for the squares in float32, 28 for both terms with a learned variance. All arithmetic in float32.

    Access width: as in the forward.
    """
    sample = tl.program_id(0) // num_tiles
    first, offsets, mask = contiguous_tile(tl.program_id(0) % num_tiles, num_elements, BLOCK)
    start = sample.to(tl.int64) * num_elements
    here = start + first
    if LEARNED:
        output_ptr += start
        grad_ptr += start
    places = output_places(first, offsets, CHANNELS, LEARNED, BLOCK)
    m = tl.load(output_ptr + start + places, mask=mask, other=0.0).to(tl.float32)
    grad = tl.zeros_like(m)
    if grad_mse_ptr is not None:
        target = tl.load(target_ptr + here + offsets, mask=mask, other=0.0).to(tl.float32)
        grad += (m - target) * (tl.load(grad_mse_ptr + sample) * mse_scale)
    behind = num_elements if CHANNELS == 0 else CHANNELS
    if grad_bound_ptr is not None:
        scale = tl.load(grad_bound_ptr + sample) * bound_scale
        t = tl.load(t_ptr + sample)
        coef1, log_q, log_min, log_max, px, pm = load_rows(table_ptr, t, num_timesteps)
        x0 = tl.load(x0_ptr + here + offsets, mask=mask, other=0.0).to(tl.float32)
        mu = px * tl.load(x_t_ptr + here + offsets, mask=mask, other=0.0).to(tl.float32) + pm * m
        moves = mask
        if CLIP is not None:
            moves = mask & (tl.abs(mu) <= CLIP)
            mu = tl.where(mu > CLIP, CLIP, mu)
            mu = tl.where(mu < -CLIP, -CLIP, mu)
        log_variance = tl.zeros_like(m) + log_min
        if LEARNED:
            share = tl.load(output_ptr + start + behind + places, mask=mask, other=0.0).to(tl.float32) * 0.5 + 0.5
            log_variance = share * log_max + (1 - share) * log_min
        if t == 0:
            if DISCRETE:
                by_mean, by_log_std = bin_slopes(x0, mu, 0.5 * log_variance, LEVELS)
            else:
                by_mean, by_log_std = density_slopes(x0, mu, 0.5 * log_variance)
            by_mean, by_log_variance = -by_mean, -0.5 * by_log_std
        else:
            by_difference, by_log_variance = normal_kl_slopes(coef1 * (x0 - mu), log_q, log_variance)
            by_mean = -coef1 * by_difference
        if not DETACH:
            grad += tl.where(moves, by_mean * (pm * scale), 0.0)
        if LEARNED:
            grad_values = by_log_variance * ((log_max - log_min) * 0.5 * scale)
            tl.store(grad_ptr + start + behind + places, grad_values.to(grad_ptr.dtype.element_ty), mask=mask)
    elif LEARNED:
        tl.store(grad_ptr + start + behind + places, tl.zeros_like(m).to(grad_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_ptr + start + places, grad.to(grad_ptr.dtype.element_ty), mask=mask)


def launch_mse_backward(call: MseBackwardCall) -> Tensor:
    """Run the op on a GPU: the output's gradient, in its type and layout. Raises ValueError for float64."""
    nothing = (None,) * 5
    return _launch(call.output, call.grad, None, call.target, *nothing, False, True, "discrete", 256)


def launch_bound_loss_backward(call: BoundLossBackwardCall) -> Tensor:
    """Run the op on a GPU: the output's gradient, in its type and layout. Raises ValueError for float64."""
    return _launch(*call)


def _launch(
    output: Tensor,
    grad_mse: Tensor | None,
    grad_bound: Tensor | None,
    target: Tensor | None,
    x0: Tensor | None,
    x_t: Tensor | None,
    t: Tensor | None,
    table: Tensor | None,
    clip: float | None,
    learned: bool,
    detach: bool,
    decoder: str,
    levels: int,
) -> Tensor:
    if output.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 tensors with implementation='reference'")
    layout = memory_format(output)
    grad = torch.empty_like(output, memory_format=layout)
    if output.numel() == 0:
        return grad
    output, target, x0, x_t = (
        None if v is None else v.contiguous(memory_format=layout) for v in (output, target, x0, x_t)
    )
    num_elements = output[0].numel() // (2 if learned else 1)
    num_tiles = cdiv(num_elements, BLOCK)
    with torch.cuda.device_of(output):
        _losses_backward_kernel[(output.shape[0] * num_tiles,)](
            output,
            target,
            x0,
            x_t,
            None if t is None else t.contiguous(),
            None if table is None else table.contiguous(),
            None if grad_mse is None else grad_mse.contiguous(),
            None if grad_bound is None else grad_bound.contiguous(),
            grad,
            2 / num_elements,
            1 / (num_elements * math.log(2.0)),
            0 if table is None else table.shape[0],
            num_elements,
            num_tiles,
            CLIP=clip,
            LEARNED=learned,
            DETACH=detach,
            DISCRETE=decoder == "discrete",
            LEVELS=levels,
            CHANNELS=output.shape[1] // 2 if learned and layout == torch.channels_last else 0,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return grad
