"""Group norm, scale and shift, SiLU on a GPU: one read and one write where a slice fits on chip.

Per sample and channel c of group g, with h = (x + residual, x2)_c + added_bias_c + added_time_c:

    y = act(((h - mean_g) / sqrt(variance_g + eps) weight_c + bias_c) (1 + scale_c) + shift_c)

A slice is one sample's whole groups of at least 32 channels (channels_last), or one group (contiguous). A small one
is kept in registers. A larger one, up to 65536 elements, is walked twice by one program, the second time in the caches.
Beyond that several programs share it, in two launches: the first leaves its part of the statistics in memory.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import GroupNormActCall
from fastdiff.kernels.group_norm_tiles import (
    Slices,
    cut,
    dense_rows,
    divide,
    group_sum,
    kind,
    load_added,
    load_tile,
    load_vector,
    row_stride,
    store_tile,
    tile_mask,
)
from fastdiff.kernels.launching import Description, are_aligned, dense, launch
from fastdiff.tensors import memory_format

# Elements of a tile that is kept in registers, at most: 32 per thread.
RESIDENT_TILE = 16384


@triton.jit(do_not_specialize=["num_splits", "split_tiles"])
def _group_norm_act_kernel(
    x_ptr,
    x2_ptr,
    residual_ptr,
    added_bias_ptr,
    added_time_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    sum_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    partial_size,
    spatial,
    num_splits,
    split_tiles,
    time_stride,
    scale_stride,
    shift_stride,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    STATISTICS: tl.constexpr,
    APPLY: tl.constexpr,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    FAST: tl.constexpr,
    STAGES: tl.constexpr,
    SPAN: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    LAYOUT: tl.constexpr,
    RESIDENT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The module's formula; STATISTICS and APPLY are its two halves, in one launch or in two.

    x, residual, sum (and x2): [B, FIRST (and CHANNELS - FIRST), spatial]; y: [B, CHANNELS, spatial], all of one type,
    in channels_last or contiguous memory. added_bias, weight, bias: [CHANNELS]; added_time, scale, shift: [B,
    CHANNELS] with a stride; any types. mean, rstd: float32 [B, groups]; partial: float32 [2, partial_size],
    partial_size = B num_splits groups: means and sums of squared differences from them. `sum` is h in its type, and h
    is then that.

    All arithmetic in float32. Each place of the tile keeps a running mean and sum of squared differences over the tiles
    (Welford); a slice's are merged at its end, the sums after the mean is known (Chan). With one tile this is the
    two-pass formula. What the differences from the mean add up to corrects it (Chan, Golub and LeVeque 1983),
    so that the mean has one rounding, whatever the size of the group.

    Bytes: x (and residual) read once, y (and sum) written once; beyond registers x or sum is read again, from the
    caches in one launch and from memory in two. Floor: those bytes / bandwidth; 8 per element in float32, 4 in 16 bits,
    6 in two launches. The SiLU costs two operations of the special function units per element: on an H200 their 3.7e12
    per second are 1.8e12 elements, or 7.4 TB/s in 16 bits, above the floor (paper arithmetic).

    Access width: 16 bytes in channels_last memory where WIDTH channels (and FIRST) are a multiple of 16 bytes, and in
    contiguous memory where the image's size is a multiple of 16.
    """
    CUT: tl.constexpr = (CHANNELS, FIRST, LAYOUT, BLOCK_P, BLOCK_C, WIDTH)
    SUM_CUT: tl.constexpr = (FIRST, FIRST, LAYOUT, BLOCK_P, BLOCK_C, WIDTH)
    NUM_BLOCKS: tl.constexpr = CHANNELS // WIDTH
    NUM_GROUPS: tl.constexpr = CHANNELS // GROUP_SIZE
    block = tl.program_id(0) % NUM_BLOCKS
    split = (tl.program_id(0) // NUM_BLOCKS) % num_splits
    sample = tl.program_id(0) // NUM_BLOCKS // num_splits

    columns = tl.arange(0, BLOCK_C)
    inside = columns < WIDTH
    first_channel = block * WIDTH
    channels = first_channel + columns
    groups = channels // GROUP_SIZE
    leads_group = inside & (columns % GROUP_SIZE == 0)
    start = split.to(tl.int64) * split_tiles * BLOCK_P
    num_pixels = tl.minimum(split_tiles.to(tl.int64) * BLOCK_P, spatial - start)
    num_tiles = tl.cdiv(num_pixels, BLOCK_P).to(tl.int32)
    added = load_added(added_bias_ptr, added_time_ptr, sample, time_stride, channels, inside, BLOCK_C)

    if STATISTICS:
        if RESIDENT:
            num_tiles = 1
        mean_here = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        squares_here = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        tiles_seen = 0.0
        for i in tl.range(0, num_tiles, num_stages=STAGES):
            first = start + i * BLOCK_P
            mask = tile_mask(spatial - first, EVEN, WIDTH, BLOCK_P, BLOCK_C)
            h = load_tile(x_ptr, x2_ptr, sample, first, first_channel, spatial, mask, CUT) + added[None, :]
            if sum_ptr is not None:
                owned = mask
                if x2_ptr is not None:
                    owned = mask & (channels < FIRST)[None, :]
                if residual_ptr is not None:
                    h += load_tile(residual_ptr, None, sample, first, first_channel, spatial, owned, SUM_CUT)
                rounded = h.to(sum_ptr.dtype.element_ty)
                store_tile(sum_ptr, None, rounded, sample, first, first_channel, spatial, owned, SUM_CUT)
                h = tl.where(owned, rounded.to(tl.float32), h)
            if RESIDENT:
                mean_here = tl.where(mask, h, 0.0)
            else:
                delta = tl.where(mask, h - mean_here, 0.0)
                tiles_seen += 1.0
                mean_here += delta * (1.0 / tiles_seen)
                squares_here += delta * (h - mean_here)

        # Places in the last tile beyond the image's end have seen one tile less.
        seen = tl.zeros([1, 1], tl.int32) + num_tiles
        if not EVEN:
            last = (num_tiles - 1) * BLOCK_P
            seen -= tl.where(tl.arange(0, BLOCK_P)[:, None] < num_pixels - last, 0, 1)
        if WIDTH != BLOCK_C:
            seen = tl.where(inside[None, :], seen, 0)
        seen = seen.to(tl.float32)
        count = num_pixels.to(tl.float32) * GROUP_SIZE
        mean = group_sum(mean_here * seen, GROUP_SIZE, SPAN, GROUPS, BLOCK_C) / count
        offset = mean_here - mean[None, :]
        rest = group_sum(offset * seen, GROUP_SIZE, SPAN, GROUPS, BLOCK_C)
        squares = group_sum(squares_here + seen * offset * offset, GROUP_SIZE, SPAN, GROUPS, BLOCK_C)
        squares -= rest * (rest / count)
        # Rounding may leave a constant group below 0; NaN stays.
        squares = tl.where(squares < 0, 0.0, squares)
        mean += rest / count
        if not APPLY:
            part_place = partial_ptr + (sample.to(tl.int64) * num_splits + split) * NUM_GROUPS + groups
            tl.store(part_place, mean, mask=leads_group)
            tl.store(part_place + partial_size, squares, mask=leads_group)

    if APPLY:
        if not STATISTICS:
            splits = tl.arange(0, BLOCK_S)
            exists = (splits < num_splits)[:, None] & inside[None, :]
            part_offsets = (sample.to(tl.int64) * num_splits + splits)[:, None] * NUM_GROUPS + groups[None, :]
            means = tl.load(partial_ptr + part_offsets, mask=exists, other=0.0)
            parts = tl.load(partial_ptr + partial_size + part_offsets, mask=exists, other=0.0)
            split_pixels = split_tiles.to(tl.int64) * BLOCK_P
            counts = tl.minimum(split_pixels, spatial - splits * split_pixels)
            counts = tl.where(exists, counts.to(tl.float32)[:, None] * GROUP_SIZE, 0.0)
            count = spatial.to(tl.float32) * GROUP_SIZE
            mean = tl.sum(means * counts, axis=0) / count
            offset = means - mean[None, :]
            squares = tl.sum(parts + counts * offset * offset, axis=0)
        rstd = tl.rsqrt(squares / count + EPS)
        if split == 0:
            group_place = sample.to(tl.int64) * NUM_GROUPS + groups
            tl.store(mean_ptr + group_place, mean, mask=leads_group)
            tl.store(rstd_ptr + group_place, rstd, mask=leads_group)

        gain = load_vector(weight_ptr, channels, inside)
        shift = load_vector(bias_ptr, channels, inside)
        if scale_ptr is not None:
            scale = 1.0 + load_vector(scale_ptr + sample.to(tl.int64) * scale_stride, channels, inside)
            gain *= scale
            shift = shift * scale + load_vector(shift_ptr + sample.to(tl.int64) * shift_stride, channels, inside)
        gain *= rstd
        if STATISTICS and sum_ptr is not None and not RESIDENT:
            # The sum is read again, maybe by other threads than wrote it.
            tl.debug_barrier()
        for i in tl.range(0, num_tiles, num_stages=STAGES):
            first = start + i * BLOCK_P
            mask = tile_mask(spatial - first, EVEN, WIDTH, BLOCK_P, BLOCK_C)
            if RESIDENT and STATISTICS:
                h = mean_here
            elif sum_ptr is not None:
                h = load_tile(sum_ptr, x2_ptr, sample, first, first_channel, spatial, mask, CUT)
                if x2_ptr is not None:
                    h += tl.where(channels < FIRST, 0.0, added)[None, :]
            else:
                h = load_tile(x_ptr, x2_ptr, sample, first, first_channel, spatial, mask, CUT) + added[None, :]
            y = (h - mean[None, :]) * gain[None, :] + shift[None, :]
            if ACT:
                y = divide(y, 1.0 + tl.exp(-y), FAST)
            store_tile(y_ptr, None, y, sample, first, first_channel, spatial, mask, CUT)


class GroupNormActOut(NamedTuple):
    """What `launch_group_norm_act` writes into, all of it dense and on x's device.

    Attributes:
        y: [B, C, ...] of x's type and memory format; x itself where it has all channels.
        total: The written sum, as x, or the residual itself; with a residual, and where the sum is wanted without one.
        mean, rstd: float32 [B, groups].
        partial: float32 of `partial_shape`, or None where that is None.
    """

    y: Tensor
    total: Tensor | None
    mean: Tensor
    rstd: Tensor
    partial: Tensor | None


def partial_shape(call: GroupNormActCall) -> tuple[int, int] | None:
    """Of the memory that two launches share, or None where there is one launch."""
    slices = _slices(call)
    return (2, slices.batch * call.groups * slices.num_splits) if slices.num_splits > 1 else None


def _slices(call: GroupNormActCall) -> Slices:
    return cut(call.x, call.x2, call.groups, memory_format(call.x), resident=RESIDENT_TILE)


def _allocate(call: GroupNormActCall, slices: Slices) -> GroupNormActOut:
    x, device = call.x, call.x.device
    shape = (slices.batch, slices.channels, *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, device=device, memory_format=slices.layout)
    total = None if call.residual is None else torch.empty_like(x, memory_format=slices.layout)
    mean = torch.empty((slices.batch, call.groups), dtype=torch.float32, device=device)
    partial = None
    if slices.num_splits > 1:
        partial = torch.empty((2, mean.numel() * slices.num_splits), dtype=torch.float32, device=device)
    return GroupNormActOut(y, total, mean, torch.empty_like(mean), partial)


def _check_out(out: GroupNormActOut, x: Tensor, slices: Slices, layout: torch.memory_format) -> None:
    shapes = ((slices.batch, slices.channels, *x.shape[2:]), tuple(x.shape))
    for name, value, shape in zip(("y", "total"), (out.y, out.total), shapes, strict=True):
        if value is None:
            continue
        if value.shape != shape or value.dtype != x.dtype or not value.is_contiguous(memory_format=layout):
            raise ValueError(
                f"{name} must be {x.dtype} {list(shape)} in x's memory format, got {value.dtype} {list(value.shape)} "
                f"with strides {value.stride()}"
            )
    if (out.partial is None) != (slices.num_splits == 1):
        raise ValueError("partial must be of partial_shape, and None where that is None: ask it for this call")


def launch_group_norm_act(
    call: GroupNormActCall, out: GroupNormActOut | None = None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Run the op on a GPU; arguments and results as in `fastdiff.ops`.

    Args:
        call: A second source and a residual may be given together: the residual, and the sum, have the first one's
            channels.
        out: Where to write. Then nothing is allocated, as long as all tensors are dense in x's memory format, the
            values [B, C] have rows without gaps, and everything starts at a multiple of 16 bytes.

    Returns:
        (y, total, mean, rstd), those of `out` where it is given; total is empty (None in `out`) without a residual.

    Raises:
        ValueError: for what the kernel cannot take.
    """
    x, x2, residual, added_bias, added_time, weight, bias, scale, shift, _, eps, act = call
    if x.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 tensors with implementation='reference'")
    slices = _slices(call)
    y, total, mean, rstd, partial = _allocate(call, slices) if out is None else out
    result = (y, x.new_empty(0) if total is None and out is None else total, mean, rstd)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must be {list(x.shape)}, as the first source, got {list(residual.shape)}")
    if y.numel() == 0:
        mean.fill_(torch.nan)
        rstd.fill_(torch.nan)
        return result
    layout = slices.layout
    x = dense(x, layout)
    x2, residual = (None if v is None else dense(v, layout) for v in (x2, residual))
    weight, bias = dense(weight), dense(bias)
    added_bias = None if added_bias is None else dense(added_bias)
    added_time, scale, shift = (None if v is None else dense_rows(v) for v in (added_time, scale, shift))
    tensors = (x, x2, residual, added_bias, added_time, weight, bias, scale, shift, y, total, mean, rstd, partial)
    kinds = (weight.dtype, bias.dtype, kind(added_bias), kind(added_time), kind(scale), kind(shift))
    if out is not None:
        _check_out(out, x, slices, layout)
    key = None
    if out is None or are_aligned(*out):
        key = (x.device, x.dtype, x2 is None, residual is None, total is None, kinds, eps, act)
    with torch.cuda.device_of(x):
        if partial is None:
            _launch(slices, key, tensors, eps, act, statistics=True, apply=True)
        else:
            _launch(slices, key, tensors, eps, act, statistics=True, apply=False)
            _launch(slices, key, tensors, eps, act, statistics=False, apply=True)
    return result


def _launch(
    slices: Slices,
    key: Hashable,
    tensors: tuple[Tensor | None, ...],
    eps: float,
    act: bool,
    *,
    statistics: bool,
    apply: bool,
) -> None:
    def describe() -> Description:
        num_groups = slices.channels // slices.group_size
        partial_size = slices.batch * slices.num_splits * num_groups if slices.num_splits > 1 else 0
        numbers = (slices.spatial, slices.num_splits, slices.split_tiles)
        strides = (row_stride(tensors[i]) for i in (4, 7, 8))
        flags = {"EPS": eps, "ACT": act, "STATISTICS": statistics, "APPLY": apply}
        return slices.grid, (partial_size, *numbers, *strides), flags | slices.constants()

    key = None if key is None else (key, statistics, apply)
    launch(_group_norm_act_kernel, slices.launches, key, tensors, (), describe)
