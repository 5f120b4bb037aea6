"""Convolution on a GPU as an implicit matrix product in channels_last memory, with what is around it in a U-Net.

    y = conv(f(x)) + bias + time + residual,   f(x) = silu(gain x + offset)

A program makes BLOCK_M pixels of one sample by BLOCK_N channels. It walks the kernel's taps and, for each, the input's
channels: a tile of pixels, moved by the tap, times a tile of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import Conv2dFusedCall
from fastdiff.kernels.attention_tiles import gpu_family, product_precision
from fastdiff.kernels.launching import cdiv, next_power_of_2


@dataclass(frozen=True)
class Tile:
    """How one program works: pixels, output channels, input channels at a time; warps; loads in flight."""

    pixels: int
    channels: int
    depth: int
    num_warps: int
    num_stages: int


# Family of GPUs and bytes of an element; chosen from the compiler's report (no spills), no GPU has timed them.
TILES = {
    ("sm_90", 2): Tile(128, 128, 64, 8, 3),
    ("sm_80", 2): Tile(128, 64, 32, 4, 3),
    ("hip", 2): Tile(64, 64, 32, 4, 1),
    ("sm_90", 4): Tile(64, 64, 32, 4, 2),
    ("sm_80", 4): Tile(64, 64, 32, 4, 2),
    ("hip", 4): Tile(64, 64, 32, 4, 1),
}


@triton.jit
def _conv2d_fused_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    gain_ptr,
    offset_ptr,
    time_ptr,
    residual_ptr,
    y_ptr,
    mean_ptr,
    squares_ptr,
    height,
    width,
    out_width,
    num_pixels,
    num_tiles,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    ACT: tl.constexpr,
    LONG: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """The module's formula, and the statistics of y per tile where mean_ptr is given.

    x: [B, height, width, C_IN]; weight: [C_OUT, SIDE, SIDE, C_IN] of x's type; bias: [C_OUT]; gain, offset: [B, C_IN];
    time: [B, C_OUT]; residual, y: [B, num_pixels, C_OUT], out_width pixels in a row; mean, squares: float32 [B,
    num_tiles, C_OUT], of y as rounded to its type. f(x) is 0 outside of the image and is rounded to x's type before
    the product, which is summed in float32. EVEN: tiles divide the image. LONG: offsets in a sample need 64 bits.

    FLOP: 2 SIDE^2 C_IN C_OUT per pixel. Bytes: y written and residual read once, x read once from memory and
    SIDE^2 C_OUT / BLOCK_N times from the caches, the weights once per tile of pixels, mostly from the caches. Floor:
    the larger of FLOP / peak and (x + y) / bandwidth; at 128 channels and 3x3 in 16 bits the former by a factor of 3
    on an H200 (paper arithmetic). The SiLU is computed anew in each tap and tile of channels.

    Access width: 16 bytes where C_IN and C_OUT are multiples of 8 in 16 bits, of 4 in float32.
    """
    NUM_N: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    NUM_K: tl.constexpr = (C_IN + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    columns = (program % NUM_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = (program // NUM_N) % num_tiles
    sample = (program // NUM_N // num_tiles).to(tl.int64)
    pixels = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = pixels // out_width * STRIDE - PADDING
    lines = pixels % out_width * STRIDE - PADDING
    x_ptr += sample * height * width * C_IN
    depths = tl.arange(0, BLOCK_K)

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, SIDE * SIDE * NUM_K):
        tap = step // NUM_K
        channels = (step % NUM_K) * BLOCK_K + depths
        row, line = rows + tap // SIDE, lines + tap % SIDE
        inside = (row >= 0) & (row < height) & (line >= 0) & (line < width)
        if not EVEN:
            inside = inside & (pixels < num_pixels)
        place = row * width + line
        place = place.to(tl.int64) if LONG else place
        if C_IN % BLOCK_K == 0:
            a = tl.load(x_ptr + place[:, None] * C_IN + channels[None, :], mask=inside[:, None], other=0.0)
        else:
            there = inside[:, None] & (channels < C_IN)[None, :]
            a = tl.load(x_ptr + place[:, None] * C_IN + channels[None, :], mask=there, other=0.0)
        if gain_ptr is not None:
            known = channels < C_IN
            gain = tl.load(gain_ptr + sample * C_IN + channels, mask=known, other=0.0).to(tl.float32)
            offset = tl.load(offset_ptr + sample * C_IN + channels, mask=known, other=0.0).to(tl.float32)
            f = a.to(tl.float32) * gain[None, :] + offset[None, :]
            if ACT:
                f = f / (1.0 + tl.exp(-f))
            a = tl.where(inside[:, None], f, 0.0).to(x_ptr.dtype.element_ty)
        weights = weight_ptr + columns[:, None] * (SIDE * SIDE * C_IN) + tap * C_IN + channels[None, :]
        if C_IN % BLOCK_K == 0 and C_OUT % BLOCK_N == 0:
            b = tl.load(weights)
        else:
            b = tl.load(weights, mask=(columns < C_OUT)[:, None] & (channels < C_IN)[None, :], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)

    known = columns < C_OUT
    added = tl.zeros([BLOCK_N], tl.float32)
    if bias_ptr is not None:
        added += tl.load(bias_ptr + columns, mask=known, other=0.0).to(tl.float32)
    if time_ptr is not None:
        added += tl.load(time_ptr + sample * C_OUT + columns, mask=known, other=0.0).to(tl.float32)
    total += added[None, :]
    there = tl.broadcast_to(known[None, :], [BLOCK_M, BLOCK_N])
    if not EVEN:
        there = there & (pixels < num_pixels)[:, None]
    place = pixels.to(tl.int64) if LONG else pixels
    places = place[:, None] * C_OUT + columns[None, :]
    start = sample * num_pixels * C_OUT
    if residual_ptr is not None:
        total += tl.load(residual_ptr + start + places, mask=there, other=0.0).to(tl.float32)
    y = total.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + start + places, y, mask=there)
    if mean_ptr is not None:
        y = tl.where(there, y.to(tl.float32), 0.0)
        count = tl.minimum(num_pixels - tile * BLOCK_M, BLOCK_M).to(tl.float32)
        mean = tl.sum(y, axis=0) / count
        difference = tl.where(there, y - mean[None, :], 0.0)
        places = (sample * num_tiles + tile) * C_OUT + columns
        tl.store(mean_ptr + places, mean, mask=known)
        tl.store(squares_ptr + places, tl.sum(difference * difference, axis=0), mask=known)


@triton.jit(do_not_specialize=["num_tiles", "num_pixels"])
def _merge_kernel(
    mean_ptr,
    squares_ptr,
    whole_mean_ptr,
    whole_squares_ptr,
    num_tiles,
    num_pixels,
    C_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The statistics of whole images from those of tiles of BLOCK_M pixels each, the last of which may have fewer.

    mean, squares: [B, num_tiles, C_OUT]; whole_mean, whole_squares: [B, C_OUT]; all float32. Merging: Chan, Golub,
    LeVeque (1983).

    Bytes: mean read twice, squares once. Floor: those bytes / bandwidth; a launch costs more than they do.

    Access width: 16 bytes where C_OUT is a multiple of 4.
    """
    NUM_C: tl.constexpr = (C_OUT + BLOCK_C - 1) // BLOCK_C
    sample = (tl.program_id(0) // NUM_C).to(tl.int64)
    channels = (tl.program_id(0) % NUM_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channels < C_OUT
    mean_ptr += sample * num_tiles * C_OUT
    squares_ptr += sample * num_tiles * C_OUT
    total = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(num_tiles):
        count = tl.minimum(num_pixels - tile * BLOCK_M, BLOCK_M).to(tl.float32)
        total += count * tl.load(mean_ptr + tile * C_OUT + channels, mask=known, other=0.0)
    mean = total / num_pixels.to(tl.float32)
    squares = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(num_tiles):
        count = tl.minimum(num_pixels - tile * BLOCK_M, BLOCK_M).to(tl.float32)
        difference = tl.load(mean_ptr + tile * C_OUT + channels, mask=known, other=0.0) - mean
        squares += tl.load(squares_ptr + tile * C_OUT + channels, mask=known, other=0.0)
        squares += count * difference * difference
    tl.store(whole_mean_ptr + sample * C_OUT + channels, mean, mask=known)
    tl.store(whole_squares_ptr + sample * C_OUT + channels, squares, mask=known)


def launch_conv2d_fused(call: Conv2dFusedCall, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Run the op on a GPU; arguments and results as in `fastdiff.ops.conv2d_fused`.

    Args:
        call: The op's arguments; the padding of a call with `out` is that above and to the left.
        out: Where to write y, channels_last. Its size may ask for more zeros below and to the right than the padding
            says. Then nothing is allocated, as long as all tensors are dense and no statistics are wanted.

    Raises:
        ValueError: for float64, or an `out` that does not fit.
    """
    x, weight, bias, gain, offset, time, residual, stride, padding, act, want_statistics = call
    if x.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 tensors with implementation='reference'")
    batch, c_in, height, width = x.shape
    c_out, _, side, _ = weight.shape
    if out is None:
        out_height, out_width = ((size + 2 * padding - side) // stride + 1 for size in (height, width))
    else:
        out_height, out_width = out.shape[2:]
        dense = out.is_contiguous(memory_format=torch.channels_last)
        if out.shape[:2] != (batch, c_out) or out.dtype != x.dtype or not dense:
            raise ValueError(f"out must be {x.dtype} [{batch}, {c_out}, H, W], channels_last, got {tuple(out.shape)}")
    x, weight = (v.contiguous(memory_format=torch.channels_last) for v in (x, weight))
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
    bias, gain, offset, time = (None if v is None else v.contiguous() for v in (bias, gain, offset, time))
    y = out
    if y is None:
        shape = (batch, c_out, out_height, out_width)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    num_pixels, family = out_height * out_width, gpu_family(x)
    tile = TILES[family, x.element_size()]
    # Small images and few channels get smaller tiles; 16 is the least that a product takes.
    block_m, block_n, block_k = (
        max(16, min(most, next_power_of_2(size)))
        for most, size in ((tile.pixels, num_pixels), (tile.channels, c_out), (tile.depth, c_in))
    )
    if c_in % block_k and c_in % 32 == 0:
        # Whole steps instead of a mask.
        block_k = min(block_k, 32)
    num_tiles = cdiv(num_pixels, block_m)
    mean = torch.empty((batch, num_tiles, c_out) if want_statistics else (0,), dtype=torch.float32, device=x.device)
    squares = torch.empty_like(mean)
    if y.numel():
        with torch.cuda.device_of(x):
            _conv2d_fused_kernel[(batch * num_tiles * cdiv(c_out, block_n),)](
                x,
                weight,
                bias,
                gain,
                offset,
                time,
                residual,
                y,
                mean if want_statistics else None,
                squares if want_statistics else None,
                height,
                width,
                out_width,
                num_pixels,
                num_tiles,
                C_IN=c_in,
                C_OUT=c_out,
                SIDE=side,
                STRIDE=stride,
                PADDING=padding,
                ACT=act,
                LONG=max(height * width * c_in, num_pixels * c_out) >= 1 << 31,
                EVEN=num_pixels % block_m == 0,
                BLOCK_M=block_m,
                BLOCK_N=block_n,
                BLOCK_K=block_k,
                PRECISION=product_precision(family, x.dtype),
                # Triton's interpreter gets 16-bit products wrong.
                WIDEN=triton.knobs.runtime.interpret,
                num_warps=tile.num_warps if block_m * block_n >= tile.pixels * tile.channels // 2 else 4,
                num_stages=tile.num_stages,
                enable_fp_fusion=True,
            )
    if not want_statistics:
        return y, mean, squares
    whole_mean, whole_squares = (mean.new_empty((batch, c_out)) for _ in range(2))
    if y.numel():
        block_c = min(next_power_of_2(c_out), 128)
        with torch.cuda.device_of(x):
            _merge_kernel[(batch * cdiv(c_out, block_c),)](
                mean,
                squares,
                whole_mean,
                whole_squares,
                num_tiles,
                num_pixels,
                C_OUT=c_out,
                BLOCK_M=block_m,
                BLOCK_C=block_c,
                num_warps=1,
                enable_fp_fusion=True,
            )
    return y, whole_mean, whole_squares
