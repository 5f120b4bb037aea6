"""A group norm as one factor and one summand per channel on a GPU, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.launching import next_power_of_2


@triton.jit
def _norm_factors_kernel(
    mean_ptr,
    squares_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    gain_ptr,
    offset_ptr,
    num_pixels,
    scale_stride,
    shift_stride,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """gain = rstd weight (1 + scale), offset = bias (1 + scale) + shift - centre gain; a program makes one group.

    mean, squares: float32 [B, CHANNELS], of each channel over num_pixels; centre and rstd are those of the group.
    weight, bias: [CHANNELS]; scale, shift: [B, CHANNELS] with a stride, any types; gain, offset: float32 [B, CHANNELS].

    Bytes: all read and written once. Floor: those bytes / bandwidth; a launch costs more than they do.
    """
    NUM_GROUPS: tl.constexpr = CHANNELS // GROUP_SIZE
    sample = (tl.program_id(0) // NUM_GROUPS).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < GROUP_SIZE
    channels = (tl.program_id(0) % NUM_GROUPS) * GROUP_SIZE + columns
    mean = tl.load(mean_ptr + sample * CHANNELS + channels, mask=inside, other=0.0)
    squares = tl.load(squares_ptr + sample * CHANNELS + channels, mask=inside, other=0.0)
    pixels = num_pixels.to(tl.float32)
    centre = tl.sum(mean, axis=0) / GROUP_SIZE
    difference = tl.where(inside, mean - centre, 0.0)
    total = tl.sum(squares + pixels * difference * difference, axis=0)
    rstd = tl.rsqrt(total / (pixels * GROUP_SIZE) + EPS)
    gain = rstd * tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        scale = 1.0 + tl.load(scale_ptr + sample * scale_stride + channels, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + sample * shift_stride + channels, mask=inside, other=0.0).to(tl.float32)
        gain *= scale
        offset = offset * scale + shift
    tl.store(gain_ptr + sample * CHANNELS + channels, gain, mask=inside)
    tl.store(offset_ptr + sample * CHANNELS + channels, offset - centre * gain, mask=inside)


def launch_norm_factors(
    mean: Tensor,
    squares: Tensor,
    num_pixels: int,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run `fastdiff.ops.norm_factors` on a GPU, in float32; arguments and results are those of that."""
    batch, channels = mean.shape
    gain, offset = torch.empty((2, batch, channels), dtype=torch.float32, device=mean.device).unbind()
    if mean.numel() == 0:
        return gain, offset
    scale, shift = (v if v is None or v.stride(1) == 1 else v.contiguous() for v in (scale, shift))
    with torch.cuda.device_of(mean):
        _norm_factors_kernel[(batch * groups,)](
            mean.contiguous(),
            squares.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            scale,
            shift,
            gain,
            offset,
            num_pixels,
            0 if scale is None else scale.stride(0),
            0 if shift is None else shift.stride(0),
            EPS=eps,
            CHANNELS=channels,
            GROUP_SIZE=channels // groups,
            BLOCK_C=next_power_of_2(channels // groups),
            num_warps=1,
            enable_fp_fusion=True,
        )
    return gain, offset
