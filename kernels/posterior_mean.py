"""The mean of the reverse step on a GPU: x_t and the network's output read once, the mean written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import PosteriorMeanCall
from fastdiff.kernels.launching import cdiv
from fastdiff.kernels.tiles import contiguous_tile, tiling


@triton.jit(do_not_specialize=["num_timesteps", "num_tiles"])
def _posterior_mean_kernel(
    x_ptr,
    output_ptr,
    t_ptr,
    table_ptr,
    mean_ptr,
    num_timesteps,
    num_elements,
    num_tiles,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """mean = c0 x_0 + c1 x_t with x_0 = clamp(c2 x_t + c3 m, -CLIP, CLIP) and (c0, c1, c2, c3) = table[t].

    x, output (m) and mean are [B, num_elements] in one order, whichever; t: int64 [B]; table: float32 [T, 4]. CLIP is
    None for no clip. A t out of range gives NaN, and NaN passes the clip. All arithmetic in float32.

    Bytes: every element of x_t and m read once, of the mean written once; per program 24 more. Floor: those bytes /
    bandwidth, 12 per element in float32, 6 in 16 bits.

    Access width: 16 bytes where num_elements is a multiple of 16 (16-bit elements beside float32 ones: 8).
    """
    sample = tl.program_id(0) // num_tiles
    first, offsets, mask = contiguous_tile(tl.program_id(0) % num_tiles, num_elements, BLOCK)
    start = sample.to(tl.int64) * num_elements + first
    x = tl.load(x_ptr + start + offsets, mask=mask).to(tl.float32)
    m = tl.load(output_ptr + start + offsets, mask=mask).to(tl.float32)

    t = tl.load(t_ptr + sample)
    valid = (t >= 0) & (t < num_timesteps)
    table_ptr += t * 4
    c0 = tl.load(table_ptr, mask=valid, other=float("nan"))
    c1 = tl.load(table_ptr + 1, mask=valid, other=float("nan"))
    c2 = tl.load(table_ptr + 2, mask=valid, other=float("nan"))
    c3 = tl.load(table_ptr + 3, mask=valid, other=float("nan"))
    x0 = c2 * x + c3 * m
    if CLIP is not None:
        # Comparisons with NaN are false, so it passes.
        x0 = tl.where(x0 > CLIP, CLIP, x0)
        x0 = tl.where(x0 < -CLIP, -CLIP, x0)
    mean = c0 * x0 + c1 * x
    tl.store(mean_ptr + start + offsets, mean.to(mean_ptr.dtype.element_ty), mask=mask)


def launch_posterior_mean(call: PosteriorMeanCall) -> Tensor:
    """Run the op on a GPU; arguments and result as in `fastdiff.ops.posterior_mean`. Raises ValueError for float64."""
    x_t, model_output, t, table, clip = call
    if x_t.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 states with implementation='reference'")
    cut = tiling(x_t, model_output.dtype)
    mean = torch.empty_like(x_t, memory_format=cut.layout)
    if x_t.numel() == 0:
        return mean
    options = cut.constants()
    num_tiles = cdiv(cut.num_elements, int(options["BLOCK"]))
    with torch.cuda.device_of(x_t):
        _posterior_mean_kernel[(x_t.shape[0] * num_tiles,)](
            x_t.contiguous(memory_format=cut.layout),
            model_output.contiguous(memory_format=cut.layout),
            t.contiguous(),
            table.contiguous(),
            mean,
            table.shape[0],
            cut.num_elements,
            num_tiles,
            CLIP=clip,
            BLOCK=options["BLOCK"],
            num_warps=8 if {x_t.dtype.itemsize, model_output.dtype.itemsize} == {2, 4} else 4,
            enable_fp_fusion=True,
        )
    return mean
