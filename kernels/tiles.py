"""How samples are cut into tiles, one per program: the host's side, and the device functions that both ops share."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.launching import Launches, cdiv, next_power_of_2
from fastdiff.kernels.philox import block_normals
from fastdiff.tensors import memory_format

# Elements of a tile: several 16-byte accesses for each of 128 threads, and few enough that small images fill a GPU.
BLOCK = 1024
MAX_BLOCK_C = 64


@dataclass(frozen=True)
class Tiling:
    """How the samples of a tensor are cut; every tensor of its shape is read and written in the same layout.

    Attributes:
        layout: channels_last where the tensor is [B, C, H, W] in that layout, else contiguous, which may mean a copy.
        num_elements: Of one sample.
        spatial: Pixels of one sample.
        num_tiles: Of one sample.
        channels: In channels_last memory, else 0.
        block_c: Channels of a tile in channels_last memory, a power of two; else 1.
        vector: Neighbours that a thread owns in contiguous memory.
        num_warps: Of a program.
        launches: What was launched for it, by whom.
    """

    layout: torch.memory_format
    num_elements: int
    spatial: int
    num_tiles: int
    channels: int
    block_c: int
    vector: int
    num_warps: int
    launches: Launches = field(default_factory=dict, compare=False, repr=False)

    def constants(self) -> dict[str, int | bool]:
        """The kernels' compile-time arguments and launch options that follow from the tiling."""
        return {
            "CHANNELS": self.channels,
            "ALIGNED": self.spatial % 4 == 0,
            "EVEN": self.spatial % (BLOCK // self.block_c) == 0,
            "BLOCK": BLOCK,
            "BLOCK_C": self.block_c,
            "VECTOR": self.vector,
            "num_warps": self.num_warps,
            "enable_fp_fusion": True,
        }


def tiling(x: Tensor, *others: torch.dtype) -> Tiling:
    """Cut x [B, ...]; `others` are the types of what is read or written along with it."""
    return tiling_of(x.shape, memory_format(x), (x.dtype, *others))


@functools.lru_cache(maxsize=4096)
def tiling_of(shape: torch.Size, layout: torch.memory_format, dtypes: tuple[torch.dtype, ...]) -> Tiling:
    """`tiling` of a tensor of this shape and layout; the types are those of all tensors."""
    num_elements = math.prod(shape[1:]) if shape[0] > 0 else 0
    channels = shape[1] if len(shape) > 1 else 1
    spatial = num_elements // max(channels, 1)
    sizes = {dtype.itemsize for dtype in dtypes}
    # A thread has 8 elements, or 4 where types are mixed: 16 bytes of the widest, so that none need be handed over.
    num_warps = 8 if min(sizes) < 4 <= max(sizes) else 4
    if layout is torch.channels_last:
        block_c = min(next_power_of_2(channels), MAX_BLOCK_C)
        # Unless every channel starts at a multiple of four elements, some are shifted by up to three pixels.
        pixels = spatial if spatial % 4 == 0 else spatial + 3
        num_tiles = cdiv(pixels, BLOCK // block_c) * cdiv(channels, block_c)
        # Three channels make 64 generator calls at a time, one per thread, and have no wide accesses.
        num_warps = 2 if channels == 3 else num_warps
        return Tiling(torch.channels_last, num_elements, spatial, num_tiles, channels, block_c, 4, num_warps)
    vector = 8 if max(sizes) < 4 else 4
    num_tiles = cdiv(num_elements, BLOCK)
    return Tiling(torch.contiguous_format, num_elements, spatial, num_tiles, 0, 1, vector, num_warps)


@triton.jit
def load_sample_id(ptr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sample's id for the functions below: one number, or in channels_last memory one per generator call.

    There, and only if this load comes before all others, the compiler makes every call in one thread and moves each
    normal once. Otherwise it spreads a call's normals over threads in several steps through shared memory.
    """
    if CHANNELS == 3:
        ptr += tl.zeros([BLOCK // BLOCK_C // 4], tl.int32)
    elif CHANNELS != 0:
        ptr += tl.zeros([BLOCK // BLOCK_C // 4, BLOCK_C], tl.int32)
    return tl.load(ptr)


@triton.jit
def contiguous_tile(tile, num_elements, BLOCK: tl.constexpr):
    """Where a tile of a contiguous sample lies: its first element (int64), and offsets and mask [BLOCK] from there."""
    first = tile.to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    return first, offsets, offsets < num_elements - first


@triton.jit
def contiguous_normals(
    tile,
    sample_id,
    last,
    seed_low,
    seed_high,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The normals of a contiguous tile: float32 [BLOCK], one or two generator calls for the VECTOR of a thread."""
    block = tile.to(tl.uint32) * (BLOCK // 4) + tl.arange(0, BLOCK // VECTOR).to(tl.uint32) * (VECTOR // 4)
    z = block_normals(block, sample_id, last, seed_low, seed_high)
    if VECTOR == 8:
        z = tl.join(z, block_normals(block + 1, sample_id, last, seed_low, seed_high))
        z = tl.permute(z, (0, 3, 1, 2))
    return tl.reshape(z, [BLOCK])


@triton.jit
def channels_last_tile(
    tile,
    spatial,
    CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Where a tile of a channels_last sample lies: BLOCK_P = BLOCK / BLOCK_C pixels by BLOCK_C channels.

    Four logical neighbours share a generator call, so in every channel a tile starts at a multiple of four elements:
    where the image's size is none (not ALIGNED), a channel is shifted by up to three pixels against the first one.
    EVEN: tiles divide the image.

    Returns:
        (first pixel int64, pixels from there int32 [BLOCK_P, 1 or BLOCK_C], channels int32 [1, BLOCK_C], mask).
    """
    CHANNEL_TILES: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    BLOCK_P: tl.constexpr = BLOCK // BLOCK_C
    first = (tile // CHANNEL_TILES).to(tl.int64) * BLOCK_P
    channels = (tile % CHANNEL_TILES) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    pixels = tl.arange(0, BLOCK_P)[:, None]
    mask = (pixels >= 0) & (channels < CHANNELS)
    if not ALIGNED:
        pixels = pixels - (channels * (spatial % 4)) % 4
        mask = mask & (pixels >= -first)
    if not EVEN:
        mask = mask & (pixels < tl.minimum(spatial - first, BLOCK_P).to(tl.int32))
    return first, pixels, channels, mask


@triton.jit
def channels_last_normals(
    tile,
    spatial,
    sample_id,
    last,
    seed_low,
    seed_high,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The normals of a channels_last tile: float32 [BLOCK / BLOCK_C, BLOCK_C].

    Each generator call gives four pixels of one channel; the transposition to memory order goes through shared memory.
    """
    CHANNEL_TILES: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    BLOCK_P: tl.constexpr = BLOCK // BLOCK_C
    groups = (tile // CHANNEL_TILES).to(tl.uint32) * (BLOCK_P // 4) + tl.arange(0, BLOCK_P // 4).to(tl.uint32)
    if CHANNELS == 3:
        # The tile has a fourth channel, for its power of two, but no generator calls are spent on it.
        size = spatial.to(tl.int64)
        z0 = block_normals(groups, sample_id, last, seed_low, seed_high)
        z1 = block_normals(groups + (size // 4).to(tl.uint32), sample_id, last, seed_low, seed_high)
        z2 = block_normals(groups + (size * 2 // 4).to(tl.uint32), sample_id, last, seed_low, seed_high)
        z = tl.join(tl.join(z0, z2), tl.join(z1, z1))
    else:
        channels = (tile % CHANNEL_TILES) * BLOCK_C + tl.arange(0, BLOCK_C)
        starts = (channels.to(tl.int64) * spatial // 4).to(tl.uint32)
        z = block_normals(groups[:, None] + starts[None, :], sample_id, last, seed_low, seed_high)
        z = tl.permute(z, (0, 2, 3, 1))
    return tl.reshape(z, [BLOCK_P, BLOCK_C])
