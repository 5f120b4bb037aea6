"""Dropout on a GPU: masks drawn in registers from a seed in memory, so that nothing is kept and nothing waits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import DropoutCall
from fastdiff.kernels.launching import Description, Launches, are_aligned, cdiv, launch
from fastdiff.kernels.philox import load_seed, philox4x32, seed_words
from fastdiff.process.noise import STREAM_SHIFT, Stream, factor_of_kept, last_kept
from fastdiff.tensors import memory_format

LAST = tl.constexpr(int(Stream.DROPOUT) << STREAM_SHIFT)
BLOCK = 1024
_LAUNCHES: Launches = {}


@triton.jit
def _words(block, sample_id, seed_low, seed_high):
    """The words of the blocks' elements of a sample, uint32 [..., 2, 2], in order."""
    zero = block * 0
    low, high = zero + sample_id.to(tl.uint32), zero + (sample_id >> 32).to(tl.uint32)
    k0, k1 = zero + seed_low.to(tl.uint32), zero + seed_high.to(tl.uint32)
    r0, r1, r2, r3 = philox4x32(block, low, high, zero + LAST, k0, k1)
    return tl.join(tl.join(r0, r2), tl.join(r1, r3))


@triton.jit(do_not_specialize=["last_kept", "factor", "num_tiles"])
def _dropout_kernel(
    x_ptr,
    seed_ptr,
    ids_ptr,
    y_ptr,
    last_kept,
    factor,
    num_elements,
    num_tiles,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """y = factor x where an element's word is at most last_kept, and 0, whatever x is, elsewhere.

    x, y: [B, num_elements] of one type in one order; seed: int64 [1]; ids: int64 [B], or None for 0..B-1. last_kept
    holds an unsigned number. The word of element e is that of the noise contract for its sample, row 0. A program takes
    one of a sample's num_tiles tiles. All arithmetic in float32.

    Bytes: x read once, y written once. Floor: those bytes / bandwidth, 8 per element in float32, 4 in 16 bits. A word
    costs about 20 instructions: above the float32 floor on an H200 (paper arithmetic).

    Access width: 16 bytes where num_elements is a multiple of 16.
    """
    sample = (tl.program_id(0) // num_tiles).to(tl.int64)
    tile = tl.program_id(0) % num_tiles
    first = tile.to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    mask = offsets < num_elements - first
    start = sample * num_elements + first
    seed_low, seed_high = load_seed(seed_ptr)
    sample_id = sample if ids_ptr is None else tl.load(ids_ptr + sample)
    x = tl.load(x_ptr + start + offsets, mask=mask, other=0.0).to(tl.float32)
    block = tile.to(tl.uint32) * (BLOCK // 4) + tl.arange(0, BLOCK // VECTOR).to(tl.uint32) * (VECTOR // 4)
    words = _words(block, sample_id, seed_low, seed_high)
    if VECTOR == 8:
        words = tl.permute(tl.join(words, _words(block + 1, sample_id, seed_low, seed_high)), (0, 3, 1, 2))
    words = tl.reshape(words, [BLOCK])
    y = tl.where(words <= last_kept.to(tl.uint32), x * factor, 0.0)
    tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def launch_dropout(call: DropoutCall) -> Tensor:
    """Run the op on a GPU; arguments and result as in `fastdiff.ops.dropout`. Raises ValueError for float64."""
    x, seed, p, ids = call
    if x.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 tensors with implementation='reference'")
    layout = memory_format(x)
    y = torch.empty_like(x, memory_format=layout)
    last = last_kept(p)
    if last < 0 or y.numel() == 0:
        return y.zero_()
    num_elements = y.numel() // y.shape[0]
    num_tiles = cdiv(num_elements, BLOCK)
    ids = None if ids is None else ids.contiguous()
    tensors = (x.contiguous(memory_format=layout), seed.contiguous(), ids, y)

    def describe() -> Description:
        options = {"BLOCK": BLOCK, "VECTOR": 4 if x.dtype == torch.float32 else 8, "num_warps": 4}
        return x.shape[0] * num_tiles, (num_elements, num_tiles), options | {"enable_fp_fusion": True}

    key = (x.device, x.dtype, x.shape[0], num_elements, ids is None) if are_aligned(*tensors) else None
    with torch.cuda.device_of(x):
        launch(_dropout_kernel, _LAUNCHES, key, tensors, (seed_words(last)[0], factor_of_kept(p)), describe)
    return y
