"""The parts of a U-Net in the order in which they run, each with its place in the architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fastdiff.nets.config import UNetConfig

__all__ = ["Kind", "NetworkModule", "Part", "network_modules"]

Kind = Literal["linear", "embedding", "conv", "norm", "res", "attention", "resample_conv"]
Part = Literal["stem", "down", "downsample", "middle", "up", "upsample", "head"]


@dataclass(frozen=True)
class NetworkModule:
    """One module that holds parameters.

    Attributes:
        kind: What it is.
        name: Its name in `fastdiff.UNet`.
        part: Where it stands.
        level: Of the resolution, 0 is the full one.
        index: Counts the modules of this kind, level and part.
        has_skip: Whether a residual block changes the width, and so has a convolution on its skip.
    """

    kind: Kind
    name: str
    part: Part
    level: int = 0
    index: int = 0
    has_skip: bool = False


def network_modules(config: UNetConfig) -> Iterator[NetworkModule]:
    """Every module of `UNet(config)` that holds parameters, but the pyramid's and what labels of augmentation have."""
    widths = config.level_channels
    last = len(widths) - 1
    has_attention = [size in config.attention_resolutions for size in config.level_sizes]

    yield NetworkModule("linear", "time_embed.0", "stem", index=0)
    yield NetworkModule("linear", "time_embed.2", "stem", index=1)
    if config.num_classes is not None:
        yield NetworkModule("embedding", "label_emb", "stem")
    yield NetworkModule("conv", "input_blocks.0.0", "stem")

    width = config.stem_width
    skips = [width]
    block = 1
    for level, out in enumerate(widths):
        for i in range(config.num_res_blocks):
            yield NetworkModule("res", f"input_blocks.{block}.0", "down", level, i, width != out)
            if has_attention[level]:
                yield NetworkModule("attention", f"input_blocks.{block}.1", "down", level, i)
            width = out
            skips.append(width)
            block += 1
        if level != last:
            yield from _resampling(config, f"input_blocks.{block}.0", "downsample", level)
            skips.append(width)
            block += 1

    yield NetworkModule("res", "middle_block.0", "middle", last, 0)
    yield NetworkModule("attention", "middle_block.1", "middle", last)
    yield NetworkModule("res", "middle_block.2", "middle", last, 1)

    block = 0
    for level in range(last, -1, -1):
        for i in range(config.num_res_blocks + 1):
            has_skip = width + skips.pop() != widths[level]
            width = widths[level]
            yield NetworkModule("res", f"output_blocks.{block}.0", "up", level, i, has_skip)
            attends = has_attention[level] and (config.decoder_attention == "all" or i == config.num_res_blocks)
            if attends:
                yield NetworkModule("attention", f"output_blocks.{block}.1", "up", level, i)
            if level and i == config.num_res_blocks:
                place = 2 if attends else 1
                yield from _resampling(config, f"output_blocks.{block}.{place}", "upsample", level)
            block += 1

    yield NetworkModule("norm", "norm_out", "head")
    yield NetworkModule("conv", "conv_out", "head")


def _resampling(config: UNetConfig, name: str, part: Part, level: int) -> Iterator[NetworkModule]:
    if config.resblock_updown:
        yield NetworkModule("res", name, part, level, has_skip=config.resample_projection)
    elif config.conv_resample:
        yield NetworkModule("resample_conv", f"{name}.conv", part, level)
