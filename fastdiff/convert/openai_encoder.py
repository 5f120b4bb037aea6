"""OpenAI's live classifier, `EncoderUNetModel`, as fastdiff's, by its structure."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fastdiff.convert.layouts import layout_entries
from fastdiff.nets.acceleration import qkv_layout_of
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.encoder import POOLS, EncoderUNet
from fastdiff.nets.unet import UNet

__all__ = ["conventions_of", "encoder_from_openai"]

_PARTS = ("time_embed.", "input_blocks.", "middle_block.")


def conventions_of(model: nn.Module) -> dict[str, Any]:
    """Fields of `UNetConfig` that the modules of OpenAI's networks tell: of norms and attentions.

    Raises:
        ValueError: they are not all alike.
    """
    norms = {(module.num_groups, module.eps) for module in model.modules() if isinstance(module, nn.GroupNorm)}
    blocks: list[Any] = [
        module for module in model.modules() if hasattr(module, "qkv") and hasattr(module, "attention")
    ]
    layouts = {qkv_layout_of(block.attention) for block in blocks}
    heads = {(block.qkv.weight.shape[0] // 3, int(block.num_heads)) for block in blocks}
    if len(norms) != 1 or len(layouts) != 1 or None in layouts:
        raise ValueError("its norms or its attentions are not all alike")
    counts, sizes = {num for _, num in heads}, {width // num for width, num in heads}
    if len(counts) != 1 and len(sizes) != 1:
        raise ValueError("its attentions have neither one number of heads nor one number of channels per head")
    ((groups, eps),) = norms
    return {
        "num_heads": max(counts),
        "head_channels": None if len(counts) == 1 else max(sizes),
        "norm_groups": groups,
        "norm_eps": eps,
        "qkv_layout": layouts.pop(),
    }


@torch.no_grad()
def encoder_from_openai(model: Any) -> EncoderUNet:
    """A copy of a live classifier of guided-diffusion.

    Raises:
        ValueError: it is built otherwise; the message names the part.
    """
    pool = getattr(model, "pool", None)
    if pool not in POOLS:
        raise ValueError(f"its pool is {pool!r}, and fastdiff has {', '.join(POOLS)}")
    config = _config(model)
    attention = model.out[2] if pool == "attention" else None
    head_channels = None
    if attention is not None:
        head_channels = attention.c_proj.weight.shape[1] // int(attention.num_heads)
    with torch.device("meta"):
        encoder = EncoderUNet(UNet(config), pool, head_channels)
    theirs = {name: value.detach() for name, value in model.state_dict().items()}
    tensors = {name: value for name, value in theirs.items() if name.startswith("out.")}
    for entry in layout_entries(config, "openai"):
        if entry.ours.startswith(_PARTS):
            if entry.theirs[0] not in theirs:
                raise ValueError(f"the tensor {entry.theirs[0]} is missing")
            value = theirs[entry.theirs[0]]
            tensors[entry.ours] = value.flatten(1) if entry.trailing else value
    if len(tensors) != len(theirs):
        raise ValueError(f"it has {len(theirs)} tensors where {len(tensors)} are expected")
    encoder.to_empty(device="cpu").to(theirs["time_embed.0.weight"].dtype)
    for name, value in encoder.state_dict().items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)} where {list(value.shape)} is expected")
        value.copy_(tensors[name])
    nn.utils.convert_conv2d_weight_memory_format(encoder, torch.channels_last)
    return encoder.eval()


def _config(model: Any) -> UNetConfig:
    blocks = [list(block) for block in model.input_blocks]
    # Where the resolution changes: a module with the part "op", or a residual block that says so.
    halvings = [n for n, block in enumerate(blocks) if hasattr(block[0], "op") or getattr(block[0], "updown", False)]
    num_res_blocks = halvings[0] - 1 if halvings else len(blocks) - 1
    per_level = num_res_blocks + 1
    num_levels = len(halvings) + 1
    if (
        num_res_blocks < 1
        or len(blocks) != num_levels * per_level
        or any(at != (level + 1) * per_level for level, at in enumerate(halvings))
    ):
        raise ValueError(f"its {len(blocks)} input blocks do not add up to levels, with halvings at {halvings}")
    firsts = [blocks[1 + level * per_level] for level in range(num_levels)]
    widths = [first[0].in_layers[2].weight.shape[0] for first in firsts]
    channels = model.time_embed[0].weight.shape[1]
    down = blocks[halvings[0]][0] if halvings else None
    size = int(getattr(model, "image_size", 0) or 8 << num_levels)
    if model.pool == "attention":
        size = math.isqrt(model.out[2].positional_embedding.shape[1] - 1) << (num_levels - 1)
    logits = [value for name, value in model.out.named_parameters() if name.endswith("bias")][-1]
    return UNetConfig.from_dict(
        {
            **conventions_of(model),
            "image_size": size,
            "in_channels": blocks[0][0].weight.shape[1],
            "out_channels": logits.shape[0],
            "channels": channels,
            "channel_mult": tuple(width // channels if width % channels == 0 else width / channels for width in widths),
            "num_res_blocks": num_res_blocks,
            "attention_resolutions": tuple(size >> level for level, first in enumerate(firsts) if len(first) > 1),
            "dropout": 0.0,
            "time_embedding": "cos_sin",
            "downsample_padding": "symmetric",
            "scale_shift_norm": bool(firsts[0][0].use_scale_shift_norm),
            "resblock_updown": getattr(down, "updown", False) is True,
            "conv_resample": down is None or hasattr(down, "in_layers") or isinstance(down.op, nn.Conv2d),
        }
    )
