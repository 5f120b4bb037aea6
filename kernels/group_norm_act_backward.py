"""The gradients of group norm, scale and shift, SiLU on a GPU: x and dy read once where a slice fits on chip.

With the forward pass's h, mean and rstd, xhat = (h - mean) rstd, u = (xhat weight + bias) (1 + scale) + shift,
du = dy act'(u), k = weight (1 + scale), and m_g the mean over a group's pixels and channels:

    dx = rstd (du k - m_g(du k) - xhat m_g(du k xhat)) + grad_sum
    dshift = sum_p du                                                    dbias   = sum_b (1 + scale) sum_p du
    dscale = sum_p du (xhat weight + bias)                               dweight = sum_b (1 + scale) sum_p du xhat

Slices are those of the forward pass, with half as much in registers.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import GroupNormActBackwardCall
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
from fastdiff.kernels.launching import Description, dense, launch
from fastdiff.tensors import memory_format

# Elements of a tile that is kept in registers, at most: 16 per thread, of x and of dy.
RESIDENT_TILE = 8192


@triton.jit
def _load_xhat_and_du(
    grad_y_ptr,
    x_ptr,
    x2_ptr,
    sample,
    first,
    first_channel,
    spatial,
    mask,
    added,
    mean,
    rstd,
    gain,
    shift,
    ACT: tl.constexpr,
    FAST: tl.constexpr,
    CUT: tl.constexpr,
):
    x = load_tile(x_ptr, x2_ptr, sample, first, first_channel, spatial, mask, CUT)
    du = load_tile(grad_y_ptr, None, sample, first, first_channel, spatial, mask, CUT)
    xhat = (x + added[None, :] - mean[None, :]) * rstd[None, :]
    if ACT:
        u = xhat * gain[None, :] + shift[None, :]
        sigmoid = divide(1.0, 1.0 + tl.exp(-u), FAST)
        du *= sigmoid * (1.0 + u * (1.0 - sigmoid))
    return xhat, du


@triton.jit(do_not_specialize=["num_splits", "split_tiles"])
def _group_norm_act_backward_kernel(
    grad_y_ptr,
    grad_sum_ptr,
    x_ptr,
    x2_ptr,
    added_bias_ptr,
    added_time_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dx2_ptr,
    parameters_ptr,
    dscale_ptr,
    dshift_ptr,
    added_ptr,
    partial_ptr,
    parameters_size,
    partial_size,
    spatial,
    num_splits,
    split_tiles,
    time_stride,
    scale_stride,
    shift_stride,
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
    """The module's formula; STATISTICS (the sums over pixels) and APPLY (dx) in one launch or in two.

    grad_y, grad_sum: [B, CHANNELS, spatial]; x, dx (and x2, dx2): [B, FIRST (and CHANNELS - FIRST), spatial], all of
    one type, in channels_last or contiguous memory. added_bias, weight, bias: [CHANNELS]; added_time, scale, shift: [B,
    CHANNELS] with a stride; mean, rstd: float32 [B, groups]. Results: dscale, dshift [B, CHANNELS] in their types;
    parameters: float32 [2, B, CHANNELS], the terms of dweight and dbias, whose sum over B is left to the caller; added:
    float32 [B, num_splits, CHANNELS], sums of dx over pixels. partial: float32 [2, B, num_splits, CHANNELS], the sums
    over pixels of du and du xhat of each program.

    All arithmetic in float32; sums over pixels first in each place of the tile, then across the tile.

    Bytes: x, grad_y (and grad_sum) read once, dx written once; beyond registers x and grad_y are read again, from the
    caches in one launch and from memory in two. Floor: those bytes / bandwidth; 12 per element in float32, 6 in 16
    bits, 10 in two launches.

    Access width: as in the forward pass.
    """
    CUT: tl.constexpr = (CHANNELS, FIRST, LAYOUT, BLOCK_P, BLOCK_C, WIDTH)
    NUM_BLOCKS: tl.constexpr = CHANNELS // WIDTH
    NUM_GROUPS: tl.constexpr = CHANNELS // GROUP_SIZE
    block = tl.program_id(0) % NUM_BLOCKS
    split = (tl.program_id(0) // NUM_BLOCKS) % num_splits
    sample = tl.program_id(0) // NUM_BLOCKS // num_splits

    columns = tl.arange(0, BLOCK_C)
    inside = columns < WIDTH
    first_channel = block * WIDTH
    channels = first_channel + columns
    start = split.to(tl.int64) * split_tiles * BLOCK_P
    num_pixels = tl.minimum(split_tiles.to(tl.int64) * BLOCK_P, spatial - start)
    num_tiles = tl.cdiv(num_pixels, BLOCK_P).to(tl.int32)
    added = load_added(added_bias_ptr, added_time_ptr, sample, time_stride, channels, inside, BLOCK_C)
    groups = sample.to(tl.int64) * NUM_GROUPS + channels // GROUP_SIZE
    mean = load_vector(mean_ptr, groups, inside)
    rstd = load_vector(rstd_ptr, groups, inside)
    weight = load_vector(weight_ptr, channels, inside)
    bias = load_vector(bias_ptr, channels, inside)
    gain, shift = weight, bias
    if scale_ptr is not None:
        scale = 1.0 + load_vector(scale_ptr + sample.to(tl.int64) * scale_stride, channels, inside)
        gain = weight * scale
        shift = bias * scale + load_vector(shift_ptr + sample.to(tl.int64) * shift_stride, channels, inside)

    if STATISTICS:
        if RESIDENT:
            num_tiles = 1
        du_here = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        # In a slice of one tile xhat itself, which is then needed again.
        xhat_here = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for i in tl.range(0, num_tiles, num_stages=STAGES):
            first = start + i * BLOCK_P
            mask = tile_mask(spatial - first, EVEN, WIDTH, BLOCK_P, BLOCK_C)
            xhat, du = _load_xhat_and_du(
                grad_y_ptr, x_ptr, x2_ptr, sample, first, first_channel, spatial, mask, added, mean, rstd, gain, shift,
                ACT, FAST, CUT,
            )  # fmt: skip
            if RESIDENT:
                du_here, xhat_here = du, xhat
            else:
                du_here += du
                xhat_here += du * xhat
        du_sum = tl.sum(du_here, axis=0)
        du_xhat_sum = tl.sum(du_here * xhat_here if RESIDENT else xhat_here, axis=0)
        if not APPLY:
            part_place = partial_ptr + (sample.to(tl.int64) * num_splits + split) * CHANNELS + channels
            tl.store(part_place, du_sum, mask=inside)
            tl.store(part_place + partial_size, du_xhat_sum, mask=inside)

    if APPLY:
        if not STATISTICS:
            splits = tl.arange(0, BLOCK_S)
            exists = (splits < num_splits)[:, None] & inside[None, :]
            part_offsets = (sample.to(tl.int64) * num_splits + splits)[:, None] * CHANNELS + channels[None, :]
            du_sum = tl.sum(tl.load(partial_ptr + part_offsets, mask=exists, other=0.0), axis=0)
            du_xhat_sum = tl.sum(tl.load(partial_ptr + partial_size + part_offsets, mask=exists, other=0.0), axis=0)
        if split == 0:
            channel_place = sample.to(tl.int64) * CHANNELS + channels
            weight_term, bias_term = du_xhat_sum, du_sum
            if scale_ptr is not None:
                dscale = weight * du_xhat_sum + bias * du_sum
                tl.store(dscale_ptr + channel_place, dscale.to(dscale_ptr.dtype.element_ty), mask=inside)
                tl.store(dshift_ptr + channel_place, du_sum.to(dshift_ptr.dtype.element_ty), mask=inside)
                weight_term, bias_term = du_xhat_sum * scale, du_sum * scale
            tl.store(parameters_ptr + channel_place, weight_term, mask=inside)
            tl.store(parameters_ptr + parameters_size + channel_place, bias_term, mask=inside)

        count = num_pixels.to(tl.float32) * GROUP_SIZE
        if not STATISTICS:
            count = spatial.to(tl.float32) * GROUP_SIZE
        centre = group_sum((gain * du_sum)[None, :], GROUP_SIZE, SPAN, GROUPS, BLOCK_C) / count
        slope = group_sum((gain * du_xhat_sum)[None, :], GROUP_SIZE, SPAN, GROUPS, BLOCK_C) / count
        if added_ptr is not None:
            dh_here = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for i in tl.range(0, num_tiles, num_stages=STAGES):
            first = start + i * BLOCK_P
            mask = tile_mask(spatial - first, EVEN, WIDTH, BLOCK_P, BLOCK_C)
            if RESIDENT and STATISTICS:
                xhat, du = xhat_here, du_here
            else:
                xhat, du = _load_xhat_and_du(
                    grad_y_ptr, x_ptr, x2_ptr, sample, first, first_channel, spatial, mask, added, mean, rstd, gain,
                    shift, ACT, FAST, CUT,
                )  # fmt: skip
            dh = rstd[None, :] * (du * gain[None, :] - centre[None, :] - xhat * slope[None, :])
            if grad_sum_ptr is not None:
                dh += load_tile(grad_sum_ptr, None, sample, first, first_channel, spatial, mask, CUT)
            if added_ptr is not None:
                dh_here += tl.where(mask, dh, 0.0)
            store_tile(dx_ptr, dx2_ptr, dh, sample, first, first_channel, spatial, mask, CUT)
        if added_ptr is not None:
            added_place = added_ptr + (sample.to(tl.int64) * num_splits + split) * CHANNELS + channels
            tl.store(added_place, tl.sum(dh_here, axis=0), mask=inside)


def launch_group_norm_act_backward(
    call: GroupNormActBackwardCall,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the op on a GPU; arguments and results as those of its reference in `fastdiff.ops`.

    Raises:
        ValueError: for tensors it cannot take.
    """
    grad_y, grad_sum, x, x2, added_bias, added_time, weight, bias, scale, shift, mean, rstd, act, want_added = call
    if x.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 tensors with implementation='reference'")
    layout, nothing = memory_format(x), x.new_empty(0)
    batch, channels, device = x.shape[0], weight.shape[0], x.device
    dx = torch.empty_like(x, memory_format=layout)
    dx2 = nothing if x2 is None else torch.empty_like(x2, memory_format=layout)
    parameters = torch.empty((2, batch, channels), dtype=torch.float32, device=device)
    dscale, dshift = (
        x.new_empty(0) if v is None else torch.empty((batch, channels), dtype=v.dtype, device=device)
        for v in (scale, shift)
    )
    if grad_y.numel() == 0:
        added = torch.zeros((batch, channels) if want_added else 0, dtype=torch.float32, device=device)
        dweight, dbias = torch.zeros_like(weight), torch.zeros_like(bias)
        return dx, dx2, dweight, dbias, dscale.zero_(), dshift.zero_(), added
    slices = cut(x, x2, mean.shape[1], layout, resident=RESIDENT_TILE)
    grad_y, x = dense(grad_y.to(dx.dtype), layout), dense(x, layout)
    grad_sum, x2 = (None if v is None else dense(v.to(dx.dtype), layout) for v in (grad_sum, x2))
    weight, bias, mean, rstd = (dense(v) for v in (weight, bias, mean, rstd))
    added_bias = None if added_bias is None else dense(added_bias)
    added_time, scale, shift = (None if v is None else dense_rows(v) for v in (added_time, scale, shift))
    splits = slices.num_splits
    added = torch.empty((batch, splits, channels) if want_added else 0, dtype=torch.float32, device=device)
    partial = None
    if splits > 1:
        partial = torch.empty((2, batch, splits, channels), dtype=torch.float32, device=device)
    tensors = (
        grad_y,
        grad_sum,
        x,
        x2,
        added_bias,
        added_time,
        weight,
        bias,
        scale,
        shift,
        mean,
        rstd,
        dx,
        None if x2 is None else dx2,
        parameters,
        None if scale is None else dscale,
        None if shift is None else dshift,
        added if want_added else None,
        partial,
    )
    kinds = (weight.dtype, bias.dtype, kind(added_bias), kind(added_time), kind(scale), kind(shift))
    key = (device, x.dtype, x2 is None, grad_sum is None, want_added, kinds, act)
    with torch.cuda.device_of(x):
        if partial is None:
            _launch(slices, key, tensors, act, statistics=True, apply=True)
        else:
            _launch(slices, key, tensors, act, statistics=True, apply=False)
            _launch(slices, key, tensors, act, statistics=False, apply=True)
    dweight, dbias = parameters.sum(dim=1).unbind()
    if want_added:
        added = added.sum(dim=1) if splits > 1 else added.reshape(batch, channels)
    return dx, dx2, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale, dshift, added


def _launch(
    slices: Slices,
    key: Hashable,
    tensors: tuple[Tensor | None, ...],
    act: bool,
    *,
    statistics: bool,
    apply: bool,
) -> None:
    def describe() -> Description:
        size = slices.batch * slices.channels
        numbers = (size, size * slices.num_splits, slices.spatial, slices.num_splits, slices.split_tiles)
        strides = (row_stride(tensors[i]) for i in (5, 8, 9))
        flags = {"ACT": act, "STATISTICS": statistics, "APPLY": apply}
        return slices.grid, (*numbers, *strides), flags | slices.constants()

    launch(
        _group_norm_act_backward_kernel, slices.launches, ("backward", key, statistics, apply), tensors, (), describe
    )
