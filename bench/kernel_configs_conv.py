"""The configurations of conv2d_fused that bench/kernel_report.py compiles and the tests check."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from kernel_configs_group_norm import one_of
from torch import Tensor

from fastdiff.calls import Conv2dFusedCall
from fastdiff.kernels.conv2d_fused import launch_conv2d_fused


def conv_case(
    shape: tuple[int, int, int, int],
    channels: int,
    dtype: str,
    *,
    side: int = 3,
    stride: int = 1,
    sums: bool = True,
    norm: bool = False,
    statistics: bool = False,
) -> Callable[[], object]:
    """A launch with x [B, C, H, W] and so many output channels; vectors are float32."""

    def image(size: tuple[int, ...]) -> Tensor:
        kind = getattr(torch, dtype)
        return torch.empty(size, dtype=kind, device="meta", memory_format=torch.channels_last)

    batch, c_in, height, width = shape
    out = (batch, channels, height // stride, width // stride)
    bias, time = (torch.empty(size, device="meta") for size in ((channels,), out[:2]))
    factors = torch.empty((batch, c_in), device="meta")
    call = Conv2dFusedCall(
        image(shape),
        image((channels, c_in, side, side)),
        bias if sums else None,
        factors if norm else None,
        factors if norm else None,
        time if sums else None,
        image(out) if sums else None,
        stride,
        side // 2,
        True,
        statistics,
    )
    launch = partial(launch_conv2d_fused, call)
    # The statistics of tiles are merged by a second launch.
    return one_of(launch, 0) if statistics else launch


HO = (64, 128, 32, 32)
CASES: dict[str, Callable[[], object]] = {
    "conv bfloat16, 128x32x32": conv_case(HO, 128, "bfloat16"),
    "conv float16, 256x16x16": conv_case((64, 256, 16, 16), 256, "float16"),
    "conv bfloat16, 256x8x8": conv_case((64, 256, 8, 8), 256, "bfloat16"),
    "conv bfloat16, 256x4x4": conv_case((64, 256, 4, 4), 256, "bfloat16"),
    "conv bfloat16, statistics": conv_case(HO, 128, "bfloat16", statistics=True),
    "conv bfloat16, norm": conv_case(HO, 128, "bfloat16", norm=True),
    "conv bfloat16, norm, statistics": conv_case(HO, 128, "bfloat16", norm=True, statistics=True),
    "conv bfloat16, 1x1": conv_case((64, 256, 16, 16), 256, "bfloat16", side=1, sums=False),
    "conv bfloat16, stride 2": conv_case(HO, 128, "bfloat16", stride=2),
    "conv float32, 128x32x32": conv_case(HO, 128, "float32"),
    "conv float32, norm, statistics": conv_case(HO, 128, "float32", norm=True, statistics=True),
    # The first layer, the last one, and channels that are no multiple of a tile.
    "conv bfloat16, 3 to 128": conv_case((64, 3, 32, 32), 128, "bfloat16", sums=False),
    "conv bfloat16, 128 to 3": conv_case(HO, 3, "bfloat16", norm=True, sums=False),
    "conv bfloat16, 192x24x24": conv_case((64, 192, 24, 24), 192, "bfloat16"),
    "conv bfloat16, 7 billion elements": conv_case((1, 128, 7400, 7400), 128, "bfloat16"),
}
