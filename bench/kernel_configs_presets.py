"""Every norm, convolution, attention and step of every preset, in bfloat16 and in float32: what a GPU is really given.

The shapes are those that the preset's own network sees, found by running it on meta tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from kernel_configs_conv import conv_case
from kernel_configs_group_norm import group_norm_case
from torch import Tensor, nn

from fastdiff.calls import AttentionCall
from fastdiff.kernels.attention import launch_attention
from fastdiff.nets.blocks import AttentionBlock, GroupNormAct
from fastdiff.nets.config import PRESETS
from fastdiff.nets.unet import UNet

BATCH = 16
DTYPES = ("bfloat16", "float32")
Launch = Callable[[], object]


def attention_case(shape: tuple[int, ...], dtype: str, num_heads: int, layout: Any) -> Launch:
    """A launch of attention over the pixels of images [B, C, H, W]."""
    qkv = torch.empty((shape[0], shape[2] * shape[3], 3 * shape[1]), dtype=getattr(torch, dtype), device="meta")
    return partial(launch_attention, AttentionCall(qkv, num_heads, layout, 0.125))


@functools.cache
def preset_cases(name: str) -> dict[str, Launch]:
    """The launches of a preset by what they are; forward and backward of a norm, one of the rest."""
    config = PRESETS[name]
    with torch.device("meta"):
        network = UNet(config).eval()
    found: dict[str, Launch] = {}

    def add(dtype: str, kind: str, launch: Launch) -> None:
        found.setdefault(f"{name}: {kind}, {dtype}", launch)

    def see_norm(module: GroupNormAct, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        shape, scaled = (
            tuple(args[0].shape),
            options.get("scale") is not None or (len(args) > 1 and args[1] is not None),
        )
        about = f"{shape[1]}@{shape[2]}x{shape[3]}, {module.groups} groups" + (", scale" if scaled else "")
        for dtype in DTYPES:
            case = partial(group_norm_case, shape, dtype, scale_shift=scaled, groups=module.groups)
            add(dtype, f"norm {about}", case())
            add(dtype, f"norm backward {about}", case(backward=True))

    def see_conv(module: nn.Conv2d, args: tuple[Tensor]) -> None:
        (batch, channels, height, width), (side, _), (stride, _) = args[0].shape, module.kernel_size, module.stride
        # A row and a column of zeros may have been put below and to the right.
        shape = (batch, channels, height // stride * stride, width // stride * stride)
        about = f"conv {shape[1]} to {module.out_channels}@{shape[2]}x{shape[3]}, side {side}, stride {stride}"
        for dtype in DTYPES:
            add(dtype, about, conv_case(shape, module.out_channels, dtype, side=side, stride=stride))

    def see_attention(module: AttentionBlock, args: tuple[Tensor, ...]) -> None:
        shape = tuple(args[0].shape)
        about = f"attention {shape[1]}@{shape[2]}x{shape[3]}, {module.num_heads} heads"
        for dtype in DTYPES:
            add(dtype, about, attention_case(shape, dtype, module.num_heads, module.layout))

    for module in network.modules():
        if isinstance(module, GroupNormAct):
            module.register_forward_pre_hook(see_norm, with_kwargs=True)  # type: ignore[arg-type]
        elif isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(see_conv)  # type: ignore[arg-type]
        elif isinstance(module, AttentionBlock):
            module.register_forward_pre_hook(see_attention)  # type: ignore[arg-type]
    size = config.image_size
    x, t = torch.empty(BATCH, config.in_channels, size, size, device="meta"), torch.empty(BATCH, device="meta")
    labels = {} if config.num_classes is None else {"y": torch.zeros(BATCH, dtype=torch.int64, device="meta")}
    with torch.no_grad():
        network(x, t, **labels)
    return found
