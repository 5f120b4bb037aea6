"""How group norm cuts its work: the host's side, and the device functions that forward and backward share.

A program owns a slice: one sample, some whole groups of neighbouring channels, all pixels or a part of them. It walks
the slice in tiles [BLOCK_P pixels, BLOCK_C channels], in either memory format.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from fastdiff.kernels.launching import Launches, cdiv, is_power_of_2, next_power_of_2

# At least so many bytes of neighbouring channels of a program in channels_last memory: a DRAM sector, or one access
# where only so narrow a slice fits in the tile below. No more, so that the norms of one sample have many programs.
MIN_BYTES, ACCESS = 32, 16
# Elements of a slice that are kept in registers and leave room for others on the multiprocessor: 16 per thread.
FULL_TILE = 8192
# Channels of a program at most. A program that owns wide groups has few pixels in a tile.
MAX_BLOCK_C = 4096
# Elements of a program's tile at least, where there are groups enough: 2 warps.
MIN_TILE = 1024
# Places at most in the table from channels to groups that a sum over groups of no power of two makes.
MAX_TABLE = 4096
# Elements of a tile when a slice is walked in several: 16 per thread.
TILE = 4096
# Elements of a slice at most that one program walks alone: what it reads twice is in the L1 or L2 cache by then.
MAX_SLICE = 65536
# Elements of a program where a slice is split, and how many programs share one at most.
SPLIT = 16384
MAX_SPLITS = 128


@dataclass(frozen=True)
class Slices:
    """How tensors [B, C, ...] are cut.

    Attributes:
        layout: channels_last where x is [B, C, H, W] in that layout, else contiguous, which may mean a copy.
        batch: B.
        channels: C, of both sources together.
        first: Channels of the first source.
        spatial: Pixels.
        group_size: Channels of a group.
        width: Channels of a program, a multiple of group_size and a divisor of C.
        block_p, block_c: Of a tile, powers of two.
        num_splits: Programs that share a slice.
        split_tiles: Tiles of each of these but the last, which may have fewer.
        launches: What was launched for them.
    """

    layout: torch.memory_format
    batch: int
    channels: int
    first: int
    spatial: int
    group_size: int
    width: int
    block_p: int
    block_c: int
    num_splits: int
    split_tiles: int
    launches: Launches = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_blocks(self) -> int:
        """Programs side by side along the channels."""
        return self.channels // self.width

    @property
    def grid(self) -> int:
        """Programs of a launch."""
        return self.batch * self.num_splits * self.num_blocks

    def constants(self) -> dict[str, int | bool | str]:
        """The kernels' compile-time arguments and launch options that follow from the cut."""
        if self.width == self.group_size:
            span = self.block_c
        else:
            span = self.group_size if is_power_of_2(self.group_size) else 0
        layout = "long" if self.spatial * self.block_c >= 1 << 31 else "contiguous"
        layout = "channels_last" if self.layout == torch.channels_last else layout
        return {
            "CHANNELS": self.channels,
            "FIRST": self.first,
            "GROUP_SIZE": self.group_size,
            "SPAN": span,
            # The interpreter has no device library.
            "FAST": not triton.knobs.runtime.interpret,
            # Tiles in flight. Loads ahead take registers: for two sources more than they are worth, since then fewer
            # programs fit on a multiprocessor.
            "STAGES": 1 if self.spatial <= self.block_p or self.first < self.channels else 3,
            "GROUPS": next_power_of_2(self.width // self.group_size),
            "WIDTH": self.width,
            "LAYOUT": layout,
            "RESIDENT": self.spatial <= self.block_p,
            "EVEN": self.spatial % self.block_p == 0,
            "BLOCK_P": self.block_p,
            "BLOCK_C": self.block_c,
            "BLOCK_S": next_power_of_2(self.num_splits),
            "num_warps": min(max(self.block_p * self.block_c // 512, 1), 16),
            "enable_fp_fusion": True,
        }


def cut(x: Tensor, x2: Tensor | None, groups: int, layout: torch.memory_format, *, resident: int) -> Slices:
    """Cut tensors shaped as (x, x2) along their channels; the cut depends on no other sample.

    Args:
        x, x2: [B, C1, ...] and, or None, [B, C2, ...].
        groups: Of C1 + C2 channels.
        layout: In which they are read and written.
        resident: Elements of a tile at most that is kept in registers: then it is read once.

    Raises:
        ValueError: a group has more than MAX_BLOCK_C channels.
    """
    second = 0 if x2 is None else x2.shape[1]
    limits = (MIN_TILE, TILE, MAX_SLICE, SPLIT, MAX_SPLITS, resident)
    return _cut(x.shape, second, groups, layout, x.element_size(), limits)


@functools.lru_cache(maxsize=4096)
def _cut(
    shape: torch.Size,
    second: int,
    groups: int,
    layout: torch.memory_format,
    itemsize: int,
    limits: tuple[int, int, int, int, int, int],
) -> Slices:
    min_tile, tile, max_slice, split, max_splits, resident = limits
    batch, first, *size = shape
    channels, spatial = first + second, math.prod(size)
    group_size = channels // groups
    if group_size > MAX_BLOCK_C:
        raise ValueError(
            f"the GPU kernels take up to {MAX_BLOCK_C} channels per group, got {group_size}: "
            f"use more groups, or implementation='reference'"
        )
    block_p = next_power_of_2(spatial)
    width = group_size
    if layout == torch.channels_last:
        width = _width(groups, group_size, itemsize, FULL_TILE // block_p)
    while next_power_of_2(width) * block_p < min_tile and channels % (2 * width) == 0:
        if not is_power_of_2(group_size) and _table(2 * width, group_size) > MAX_TABLE:
            break
        width *= 2
    block_c = next_power_of_2(width)
    if block_p * block_c > resident:
        block_p = max(tile // block_c, 1)
    num_splits, split_tiles = 1, cdiv(spatial, block_p)
    if spatial * block_c > max_slice:
        split_tiles = max(split // (block_c * block_p), cdiv(split_tiles, max_splits), 1)
        num_splits = cdiv(spatial, split_tiles * block_p)
    return Slices(layout, batch, channels, first, spatial, group_size, width, block_p, block_c, num_splits, split_tiles)


def dense_rows(values: Tensor) -> Tensor:
    """[B, C] values whose rows are contiguous and whose first is at a multiple of 16 bytes: a copy if need be."""
    is_dense = values.stride(1) == 1 and values.data_ptr() % 16 == 0
    return values if is_dense else values.clone(memory_format=torch.contiguous_format)


def kind(values: Tensor | None) -> tuple[torch.dtype, int] | None:
    """What a compiled kernel depends on of [C] or [B, C] values."""
    return None if values is None else (values.dtype, values.stride(0))


def row_stride(values: Tensor | None) -> int:
    """Elements from one sample's values to the next one's."""
    return 0 if values is None else values.stride(0)


def _table(width: int, group_size: int) -> int:
    """Places in the table from a program's channels to its groups."""
    return next_power_of_2(width // group_size) * next_power_of_2(width)


def _width(groups: int, group_size: int, itemsize: int, most: int) -> int:
    """Channels of a program in channels_last memory: enough for whole sectors or, if more than `most`, for accesses."""
    widths = [n * group_size for n in range(1, groups + 1) if groups % n == 0]
    aligned = [width for width in widths if width * itemsize % ACCESS == 0] or widths[-1:]
    wide = [width for width in aligned if width * itemsize >= MIN_BYTES] or aligned[-1:]
    smallest = next_power_of_2(wide[0])
    if smallest > most >= next_power_of_2(aligned[0]):
        smallest = next_power_of_2(aligned[0])
    # Of the widths that take the same tile the largest wastes least of it.
    return max(width for width in aligned if next_power_of_2(width) == smallest)


@triton.jit
def tile_mask(left, EVEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which elements of a tile there are, with `left` pixels from its first one to the image's end."""
    mask = tl.broadcast_to(tl.arange(0, BLOCK_C)[None, :] < WIDTH, [BLOCK_P, BLOCK_C])
    if not EVEN:
        mask = mask & (tl.arange(0, BLOCK_P)[:, None] < left)
    return mask


@triton.jit
def _source_pointers(ptr, sample, first_pixel, first_channel, spatial, num_channels, CUT: tl.constexpr):
    pixels = tl.arange(0, CUT[3])[:, None]
    columns = tl.arange(0, CUT[4])[None, :]
    ptr += sample.to(tl.int64) * spatial * num_channels
    if CUT[2] == "channels_last":
        place = ptr + (first_pixel * num_channels + first_channel) + (pixels * num_channels + columns)
    else:
        columns = columns.to(tl.int64) if CUT[2] == "long" else columns
        place = ptr + (first_channel.to(tl.int64) * spatial + first_pixel) + (columns * spatial + pixels)
    return place


@triton.jit
def _whole_source_pointers(ptr, ptr2, sample, first_pixel, first_channel, spatial, CUT: tl.constexpr):
    """Of the one source that has all of a program's channels."""
    in_first = first_channel < CUT[1]
    source = tl.where(in_first, ptr, ptr2)
    num_channels = tl.where(in_first, CUT[1], CUT[0] - CUT[1])
    first_channel -= tl.where(in_first, 0, CUT[1])
    return _source_pointers(source, sample, first_pixel, first_channel, spatial, num_channels, CUT)


@triton.jit
def load_tile(ptr, ptr2, sample, first_pixel, first_channel, spatial, mask, CUT: tl.constexpr):
    """float32 [BLOCK_P, BLOCK_C]: the pixels from first_pixel (int64) and the channels from first_channel on.

    CUT: (CHANNELS, FIRST, LAYOUT, BLOCK_P, BLOCK_C, WIDTH). With a second source, ptr has the first FIRST channels and
    ptr2 the others. LAYOUT is "channels_last", "contiguous" or "long": contiguous, and offsets in a tile need 64 bits.
    Elements outside the mask are 0.
    """
    if ptr2 is None:
        place = _source_pointers(ptr, sample, first_pixel, first_channel, spatial, CUT[0], CUT)
        x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    elif CUT[1] % CUT[5] == 0:
        place = _whole_source_pointers(ptr, ptr2, sample, first_pixel, first_channel, spatial, CUT)
        x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    else:
        channels = first_channel + tl.arange(0, CUT[4])[None, :]
        one = _source_pointers(ptr, sample, first_pixel, first_channel, spatial, CUT[1], CUT)
        two = _source_pointers(ptr2, sample, first_pixel, first_channel - CUT[1], spatial, CUT[0] - CUT[1], CUT)
        x = tl.load(one, mask=mask & (channels < CUT[1]), other=0.0).to(tl.float32)
        x += tl.load(two, mask=mask & (channels >= CUT[1]), other=0.0).to(tl.float32)
    return x


@triton.jit
def store_tile(ptr, ptr2, values, sample, first_pixel, first_channel, spatial, mask, CUT: tl.constexpr):
    """Store values [BLOCK_P, BLOCK_C] where `load_tile` finds them, in the type of what is there."""
    values = values.to(ptr.dtype.element_ty)
    if ptr2 is None:
        place = _source_pointers(ptr, sample, first_pixel, first_channel, spatial, CUT[0], CUT)
        tl.store(place, values, mask=mask)
    elif CUT[1] % CUT[5] == 0:
        place = _whole_source_pointers(ptr, ptr2, sample, first_pixel, first_channel, spatial, CUT)
        tl.store(place, values, mask=mask)
    else:
        channels = first_channel + tl.arange(0, CUT[4])[None, :]
        one = _source_pointers(ptr, sample, first_pixel, first_channel, spatial, CUT[1], CUT)
        two = _source_pointers(ptr2, sample, first_pixel, first_channel - CUT[1], spatial, CUT[0] - CUT[1], CUT)
        tl.store(one, values, mask=mask & (channels < CUT[1]))
        tl.store(two, values, mask=mask & (channels >= CUT[1]))


@triton.jit
def load_vector(ptr, channels, mask):
    """float32 [BLOCK_C]: one number per channel."""
    return tl.load(ptr + channels, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def divide(a, b, FAST: tl.constexpr):
    """a / b within 2 ulp for b up to 2^126, and 0 above where a is finite: one instruction and not eleven, if FAST."""
    return libdevice.fast_dividef(a, b) if FAST else a / b


@triton.jit
def load_added(added_bias_ptr, added_time_ptr, sample, time_stride, channels, mask, BLOCK_C: tl.constexpr):
    """float32 [BLOCK_C]: what is added to x in each channel."""
    added = tl.zeros([BLOCK_C], tl.float32)
    if added_bias_ptr is not None:
        added += load_vector(added_bias_ptr, channels, mask)
    if added_time_ptr is not None:
        added += load_vector(added_time_ptr + sample.to(tl.int64) * time_stride, channels, mask)
    return added


@triton.jit
def group_sum(x, GROUP_SIZE: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sum over each group of x [N, BLOCK_C]: [BLOCK_C], the same in all channels of a group.

    SPAN: channels of the tile that a group has where groups are equal parts of the tile, else 0, and then there are
    GROUPS of them at most: a power of two.
    """
    if SPAN == BLOCK_C:
        sums = tl.zeros([BLOCK_C], tl.float32) + tl.sum(tl.sum(x, axis=0), axis=0)
    elif SPAN != 0:
        N: tl.constexpr = x.shape[0]
        PARTS: tl.constexpr = BLOCK_C // SPAN
        sums = tl.sum(tl.sum(tl.reshape(x, [N, PARTS, SPAN]), axis=2), axis=0)
        sums = tl.reshape(tl.broadcast_to(sums[:, None], [PARTS, SPAN]), [BLOCK_C])
    else:
        group = tl.arange(0, BLOCK_C) // GROUP_SIZE
        belongs = tl.arange(0, GROUPS)[:, None] == group[None, :]
        sums = tl.sum(x, axis=0)
        sums = tl.sum(tl.where(belongs, sums[None, :], 0.0), axis=1)
        sums = tl.sum(tl.where(belongs, sums[:, None], 0.0), axis=0)
    return sums
