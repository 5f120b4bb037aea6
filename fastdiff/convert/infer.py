"""What the names and shapes of a state dict say about the network they belong to, and what they do not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

__all__ = ["Format", "Inferred", "infer_ddim", "infer_openai", "recognise"]

Format = Literal["openai", "ddim", "diffusers", "lucidrains", "fastdiff"]

_MARKS: dict[str, tuple[str, ...]] = {
    "openai": ("time_embed.0.weight", "input_blocks.0.0.weight"),
    "ddim": ("temb.dense.0.weight", "conv_in.weight"),
    "diffusers": ("time_embedding.linear_1.weight", "conv_in.weight"),
    "lucidrains": ("init_conv.weight", "downs.0.0.block1.proj.weight"),
}


@dataclass(frozen=True)
class Inferred:
    """What the tensors of one network say.

    Attributes:
        fields: Fields of `UNetConfig`: channels, channel_mult, num_res_blocks, in_channels, out_channels, num_classes,
            scale_shift_norm, resblock_updown and conv_resample, and the conventions that the layout implies.
        attention_levels: The levels whose residual blocks are followed by attention, 0 is the full resolution. Which
            resolutions they are depends on the size of the images.
        attention_channels: Widths of the attention layers.
    """

    fields: dict[str, Any]
    attention_levels: tuple[int, ...]
    attention_channels: tuple[int, ...]

    @property
    def learned_variance(self) -> bool:
        """Whether the output has twice the channels of the input: the second half is the variance."""
        return bool(self.fields["out_channels"] == 2 * self.fields["in_channels"])


def recognise(tensors: Mapping[str, Tensor]) -> Format | None:
    """The project whose network has tensors of these names; None for none that is known."""
    if "time_embed.0.weight" in tensors and any(name.endswith("emb_proj.weight") for name in tensors):
        return "fastdiff"
    for name, marks in _MARKS.items():
        if all(mark in tensors for mark in marks):
            return name  # type: ignore[return-value]
    return None


def infer_openai(tensors: Mapping[str, Tensor]) -> Inferred:
    """Read an improved- or guided-diffusion U-Net off its state dict.

    Raises:
        ValueError: it is a classifier or a latent diffusion network, or its blocks do not add up.
    """
    if any("transformer_blocks" in name for name in tensors):
        raise ValueError("this is a network of latent diffusion (it has transformer_blocks), not a pixel-space U-Net")
    if not any(name.startswith("output_blocks.") for name in tensors):
        raise ValueError(
            "this is a classifier (it has no output_blocks): load it with "
            "fastdiff.compat.guided_diffusion.script_util.create_classifier"
        )
    num_blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("output_blocks."))
    upsamplers = sorted(
        int(match[1])
        for match in (
            re.fullmatch(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.0)\.weight", name) for name in tensors
        )
        if match
    )
    present = {int(name.split(".")[1]) for name in tensors if name.startswith("input_blocks.")}
    gaps = sorted(set(range(num_blocks)) - present)
    conv_resample = True
    if upsamplers:
        num_res_blocks = upsamplers[0]
    elif gaps:
        # Average pooling has no parameters: its block is missing.
        num_res_blocks, conv_resample = gaps[0] - 1, False
    else:
        num_res_blocks = num_blocks - 1
    per_level = num_res_blocks + 1
    if num_res_blocks < 1 or num_blocks % per_level or max(present) + 1 > num_blocks:
        raise ValueError(
            f"the blocks do not add up to a U-Net: {max(present) + 1} input blocks, {num_blocks} output blocks, the "
            f"first upsampling after {num_res_blocks} residual blocks"
        )
    num_levels = num_blocks // per_level
    first_blocks = [1 + level * per_level for level in range(num_levels)]
    widths = [_rows(tensors, f"input_blocks.{block}.0.in_layers.2.weight") for block in first_blocks]
    emb_rows = _rows(tensors, "input_blocks.1.0.emb_layers.1.weight")
    levels = tuple(level for level, block in enumerate(first_blocks) if f"input_blocks.{block}.1.qkv.weight" in tensors)
    fields = _common(tensors, "time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight", widths)
    fields |= {
        "num_res_blocks": num_res_blocks,
        "num_classes": tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else None,
        "scale_shift_norm": emb_rows == 2 * widths[0],
        "resblock_updown": num_levels > 1 and f"input_blocks.{per_level}.0.in_layers.0.weight" in tensors,
        "conv_resample": conv_resample,
        "norm_eps": 1e-5,
        "time_embedding": "cos_sin",
        "downsample_padding": "symmetric",
    }
    return Inferred(fields, levels, tuple(sorted({widths[level] for level in levels} | {widths[-1]})))


def infer_ddim(tensors: Mapping[str, Tensor]) -> Inferred:
    """Read a network of ermongroup/ddim, or one of Ho's in PyTorch, off its state dict.

    Raises:
        ValueError: its blocks do not add up.
    """
    num_levels = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("down."))
    widths = [_rows(tensors, f"down.{level}.block.0.conv1.weight") for level in range(num_levels)]
    num_res_blocks = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("down.0.block."))
    levels = tuple(level for level in range(num_levels) if f"down.{level}.attn.0.norm.weight" in tensors)
    fields = _common(tensors, "temb.dense.0.weight", "conv_in.weight", "conv_out.weight", widths)
    fields |= {
        "num_res_blocks": num_res_blocks,
        "num_classes": None,
        "scale_shift_norm": False,
        "resblock_updown": False,
        "conv_resample": num_levels == 1 or "down.0.downsample.conv.weight" in tensors,
        "norm_eps": 1e-6,
        "time_embedding": "sin_cos",
        "downsample_padding": "asymmetric",
        "qkv_layout": "separate",
        "num_heads": 1,
    }
    return Inferred(fields, levels, tuple(sorted({widths[level] for level in levels} | {widths[-1]})))


def _common(tensors: Mapping[str, Tensor], time: str, first: str, last: str, widths: list[int]) -> dict[str, Any]:
    channels = tensors[time].shape[1]
    return {
        "in_channels": tensors[first].shape[1],
        "out_channels": _rows(tensors, last),
        "channels": channels,
        "channel_mult": tuple(width // channels if width % channels == 0 else width / channels for width in widths),
    }


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise ValueError(f"the tensor {name} is missing")
    return tensors[name].shape[0]
