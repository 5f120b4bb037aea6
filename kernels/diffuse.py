"""The noising op on a GPU: one read and one write per tensor, its noise drawn in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import DiffuseCall
from fastdiff.kernels.launching import Description, are_aligned, launch
from fastdiff.kernels.philox import last_word, load_seed, seed_words
from fastdiff.kernels.tiles import (
    channels_last_normals,
    channels_last_tile,
    contiguous_normals,
    contiguous_tile,
    load_sample_id,
    tiling,
)


@triton.jit(do_not_specialize=["num_timesteps", "num_tiles", "row_stride", "seed_low", "seed_high", "stream"])
def _diffuse_kernel(
    x0_ptr,
    t_ptr,
    table_ptr,
    noise_ptr,
    ids_ptr,
    row_ptr,
    x_t_ptr,
    target_ptr,
    seed_ptr,
    num_timesteps_ptr,
    num_timesteps,
    row_stride,
    seed_low,
    seed_high,
    stream,
    num_elements,
    spatial,
    num_tiles,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """x_t = c0 x_0 + c1 z and, where target_ptr is given, target = c2 x_0 + c3 z, with (c0, c1, c2, c3) = table[t].

    x0, x_t, target and noise are [B, num_elements] in one order: logical where CHANNELS is 0, else channels_last with
    so many channels and `spatial` pixels. t, ids, row: int64 [B] (row [1] with row_stride 0); table: float32 [T, 4].
    seed and num_timesteps: int64 [1] where they are given, else the scalars. A t out of range gives NaN. All arithmetic
    in float32.

    Bytes: every element of x0 (and noise) read once, of x_t (and target) written once; per program 60 more. Floor:
    those bytes / bandwidth, 12 per element in float32, 6 in 16 bits. The noise costs about 40 instructions per element:
    on an H200 some 6e11 elements per second, which is above the float32 floor and below that of 16 bits (paper
    arithmetic).

    Access width: 16 bytes in contiguous memory where num_elements is a multiple of 16 (beside float32 elements: 8 for
    16-bit ones and 4 for uint8; uint8 beside 16-bit ones: 8). In channels_last memory the neighbours are channels: 16
    bytes of them where their number is a multiple of 4 (in 16 bits, 8), else fewer or single ones, with a warp on whole
    rows of neighbouring pixels.
    """
    sample = tl.program_id(0) // num_tiles
    tile = tl.program_id(0) % num_tiles
    if noise_ptr is None:
        sample_id = load_sample_id(ids_ptr + sample, CHANNELS, BLOCK, BLOCK_C)
    start = sample.to(tl.int64) * num_elements
    if CHANNELS == 0:
        first, offsets, mask = contiguous_tile(tile, num_elements, BLOCK)
        start += first
    else:
        first, pixels, channels, mask = channels_last_tile(tile, spatial, CHANNELS, ALIGNED, EVEN, BLOCK, BLOCK_C)
        start += first * CHANNELS
        offsets = pixels * CHANNELS + channels

    x0 = tl.load(x0_ptr + start + offsets, mask=mask).to(tl.float32)
    if x0_ptr.dtype.element_ty == tl.uint8:
        x0 = x0 * (2.0 / (LEVELS - 1)) - 1.0

    t = tl.load(t_ptr + sample)
    if num_timesteps_ptr is not None:
        num_timesteps = tl.load(num_timesteps_ptr)
    valid = (t >= 0) & (t < num_timesteps)
    table_ptr += t * 4
    c0 = tl.load(table_ptr, mask=valid, other=float("nan"))
    c1 = tl.load(table_ptr + 1, mask=valid, other=float("nan"))

    if noise_ptr is not None:
        z = tl.load(noise_ptr + start + offsets, mask=mask).to(tl.float32)
    else:
        last = last_word(tl.load(row_ptr + sample * row_stride), stream)
        if seed_ptr is not None:
            seed_low, seed_high = load_seed(seed_ptr)
        if CHANNELS == 0:
            z = contiguous_normals(tile, sample_id, last, seed_low, seed_high, BLOCK, VECTOR)
        else:
            z = channels_last_normals(tile, spatial, sample_id, last, seed_low, seed_high, CHANNELS, BLOCK, BLOCK_C)

    x_t = tl.fma(z, c1, c0 * x0)
    tl.store(x_t_ptr + start + offsets, x_t.to(x_t_ptr.dtype.element_ty), mask=mask)
    if target_ptr is not None:
        c2 = tl.load(table_ptr + 2, mask=valid, other=float("nan"))
        c3 = tl.load(table_ptr + 3, mask=valid, other=float("nan"))
        target = tl.fma(z, c3, c2 * x0)
        tl.store(target_ptr + start + offsets, target.to(target_ptr.dtype.element_ty), mask=mask)


def launch_diffuse(
    call: DiffuseCall, *, seed: Tensor | None = None, num_timesteps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the op on a GPU; arguments and results as in `fastdiff.ops.diffuse`.

    Args:
        call: The op's arguments.
        seed: int64 [1] on x0's device, read by the kernel in place of the call's seed, as a captured launch needs.
        num_timesteps: int64 [1] likewise, in place of the number of timesteps that the table has room for.

    Raises:
        ValueError: for float64 images.
    """
    x0, t, table, noise, sample_ids, row, scalar, stream, levels, dtype, want_target = call
    if x0.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 images with implementation='reference'")
    cut = tiling(x0, dtype) if noise is None else tiling(x0, dtype, noise.dtype)
    x_t = torch.empty_like(x0, dtype=dtype, memory_format=cut.layout)
    target = torch.empty_like(x_t) if want_target else x_t.new_empty(0)
    if x0.numel() == 0:
        return x_t, target
    x0 = x0.contiguous(memory_format=cut.layout)
    noise = None if noise is None else noise.contiguous(memory_format=cut.layout)
    t, table, sample_ids, row = (v.contiguous() for v in (t, table, sample_ids, row))
    written = target if want_target else None
    tensors = (x0, t, table, noise, sample_ids, row, x_t, written, seed, num_timesteps)

    def describe() -> Description:
        fixed = (cut.num_elements, cut.spatial, cut.num_tiles)
        return x0.shape[0] * cut.num_tiles, fixed, {"LEVELS": levels} | cut.constants()

    key = None
    if are_aligned(*tensors):
        kinds = (x0.dtype, dtype, None if noise is None else noise.dtype)
        key = ("diffuse", x0.device, kinds, want_target, levels, seed is None, num_timesteps is None)
    numbers = (table.shape[0], 0 if row.shape[0] == 1 else 1, *seed_words(scalar), stream)
    with torch.cuda.device_of(x0):
        launch(_diffuse_kernel, cut.launches, key, tensors, numbers, describe)
    return x_t, target
