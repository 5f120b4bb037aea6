"""Names and shapes of a network's tensors in other projects' files, as pure functions in both directions.

A layout says what the modules of the architecture are called, and how attention stores q, k and v. Nothing is
computed: tensors are renamed, reshaped, split, joined and their rows reordered, so that every round trip is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastdiff.convert.unet_modules import NetworkModule, network_modules
from fastdiff.nets.config import UNetConfig
from fastdiff.process.checks import nearest_name
from fastdiff.tensors import PACKINGS, QkvLayout

__all__ = ["Entry", "Layout", "from_layout", "layout_entries", "layout_names", "reorder_qkv", "to_layout"]

Layout = Literal["openai", "diffusers", "diffusers_old", "ddim"]

_MAX_LISTED = 5


@dataclass(frozen=True)
class _Naming:
    """What a layout calls things.

    Attributes:
        module_name: Its own name of a module of ours.
        res: Names in a residual block of norm1, conv1, emb_proj, norm2, conv2 and skip.
        norm: Name in an attention block of the norm.
        qkv: Names in an attention block of the packed weight, or of q, k and v.
        proj: Name in an attention block of the last layer.
        trailing: Axes of size 1 behind the weights [rows, C] of attention's layers.
    """

    module_name: Callable[[NetworkModule, int], str]
    res: tuple[str, str, str, str, str, str]
    norm: str
    qkv: tuple[str, ...]
    proj: str
    trailing: int


def _openai_name(module: NetworkModule, num_levels: int) -> str:
    if module.part == "head":
        return "out.0" if module.kind == "norm" else "out.2"
    if module.part == "downsample" and module.kind == "resample_conv":
        return module.name.removesuffix("conv") + "op"
    return module.name


def _diffusers_name(module: NetworkModule, num_levels: int) -> str:
    if module.part in ("stem", "head"):
        return {
            "linear": f"time_embedding.linear_{module.index + 1}",
            "embedding": "class_embedding",
            "norm": "conv_norm_out",
            "conv": "conv_in" if module.part == "stem" else "conv_out",
        }[module.kind]
    if module.part == "middle":
        return f"mid_block.{'resnets' if module.kind == 'res' else 'attentions'}.{module.index}"
    inside = {"res": f"resnets.{module.index}", "attention": f"attentions.{module.index}"}.get(module.kind, "")
    if module.part in ("downsample", "upsample"):
        inside = f"{module.part}rs.0" if module.kind == "res" else f"{module.part}rs.0.conv"
    if module.part in ("down", "downsample"):
        return f"down_blocks.{module.level}.{inside}"
    return f"up_blocks.{num_levels - 1 - module.level}.{inside}"


def _ddim_name(module: NetworkModule, num_levels: int) -> str:
    if module.part in ("stem", "head"):
        return {
            "linear": f"temb.dense.{module.index}",
            "embedding": "label_emb",
            "norm": "norm_out",
            "conv": "conv_in" if module.part == "stem" else "conv_out",
        }[module.kind]
    if module.part == "middle":
        return f"mid.block_{module.index + 1}" if module.kind == "res" else "mid.attn_1"
    if module.part in ("downsample", "upsample"):
        return f"{module.part.removesuffix('sample')}.{module.level}.{module.part}.conv"
    return f"{module.part}.{module.level}.{'block' if module.kind == 'res' else 'attn'}.{module.index}"


_DIFFUSERS_RES = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_NAMINGS: dict[str, _Naming] = {
    "openai": _Naming(
        _openai_name,
        ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
        "norm",
        ("qkv",),
        "proj_out",
        trailing=1,
    ),
    "diffusers": _Naming(
        _diffusers_name, _DIFFUSERS_RES, "group_norm", ("to_q", "to_k", "to_v"), "to_out.0", trailing=0
    ),
    "diffusers_old": _Naming(
        _diffusers_name, _DIFFUSERS_RES, "group_norm", ("query", "key", "value"), "proj_attn", trailing=0
    ),
    "ddim": _Naming(
        _ddim_name,
        ("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut"),
        "norm",
        ("q", "k", "v"),
        "proj_out",
        trailing=2,
    ),
}
_OUR_RES = ("norm1", "conv1", "emb_proj", "norm2", "conv2", "skip")


@dataclass(frozen=True)
class Entry:
    """One tensor of a `UNet` and the tensors of a layout that hold it.

    Attributes:
        ours: Its name in `UNet.state_dict`.
        theirs: One name, or those of q, k and v.
        qkv_channels: Channels of the attention layer whose packed qkv this is; 0 for other tensors.
        trailing: Axes of size 1 that the layout has behind it.
    """

    ours: str
    theirs: tuple[str, ...]
    qkv_channels: int = 0
    trailing: int = 0


def layout_entries(config: UNetConfig, layout: str) -> list[Entry]:
    """Every tensor of a network with its place in a layout.

    Raises:
        ValueError: the layout is unknown, or has no names for such a network.
    """
    if layout not in _NAMINGS:
        raise ValueError(f"unknown layout {layout!r}: {nearest_name(layout, get_args(Layout))}")
    if config.of_song:
        raise ValueError(f"the {layout} layout has no names for a network with {', '.join(config.of_song)}")
    if layout == "ddim" and config.resblock_updown:
        raise ValueError("the ddim layout has no residual blocks that resample (resblock_updown)")
    if layout == "ddim" and config.num_classes is not None:
        raise ValueError(f"the ddim layout has no class labels, got num_classes={config.num_classes}")
    naming = _NAMINGS[layout]
    widths = config.level_channels
    found: list[Entry] = []
    for module in network_modules(config):
        theirs_at = naming.module_name(module, len(widths))
        if module.kind == "res":
            pairs = list(zip(_OUR_RES, naming.res, strict=True))[: 6 if module.has_skip else 5]
            found += [
                Entry(f"{module.name}.{ours}.{end}", (f"{theirs_at}.{theirs}.{end}",))
                for ours, theirs in pairs
                for end in ("weight", "bias")
            ]
        elif module.kind == "attention":
            for end in ("weight", "bias"):
                trailing = naming.trailing if end == "weight" else 0
                packed = tuple(f"{theirs_at}.{name}.{end}" for name in naming.qkv)
                found += [
                    Entry(f"{module.name}.norm.{end}", (f"{theirs_at}.{naming.norm}.{end}",)),
                    Entry(f"{module.name}.qkv.{end}", packed, widths[module.level], trailing),
                    Entry(f"{module.name}.proj.{end}", (f"{theirs_at}.{naming.proj}.{end}",), trailing=trailing),
                ]
        else:
            ends = ("weight",) if module.kind == "embedding" else ("weight", "bias")
            found += [Entry(f"{module.name}.{end}", (f"{theirs_at}.{end}",)) for end in ends]
    return found


def layout_names(config: UNetConfig, layout: Layout) -> list[str]:
    """The tensor names of a network in a layout.

    Raises:
        ValueError: the layout is unknown, or has no names for such a network.
    """
    return [name for entry in layout_entries(config, layout) for name in entry.theirs]


def reorder_qkv(rows: Tensor, num_heads: int, source: QkvLayout, target: QkvLayout) -> Tensor:
    """The rows of a packed qkv weight or bias [3C, ...] in another order; see `UNetConfig.qkv_layout`."""
    if PACKINGS[source] == PACKINGS[target]:
        return rows
    sizes = {"part": 3, "head": num_heads, "channel": rows.shape[0] // (3 * num_heads)}
    old, new = PACKINGS[source], PACKINGS[target]
    split = rows.unflatten(0, [sizes[name] for name in old])
    axes = [old.index(name) for name in new]
    reordered: Tensor = split.permute(*axes, *range(3, split.dim())).reshape(rows.shape)
    return reordered


def to_layout(
    tensors: Mapping[str, Tensor], config: UNetConfig, layout: Layout, *, qkv_layout: QkvLayout | None = None
) -> dict[str, Tensor]:
    """A `UNet`'s tensors under another project's names.

    Args:
        tensors: `UNet(config).state_dict()`.
        config: The network's.
        layout: "openai" (improved- and guided-diffusion), "diffusers", "diffusers_old" (query, key, value, proj_attn)
            or "ddim" (ermongroup/ddim and Ho's networks in PyTorch).
        qkv_layout: Row order of the packed weight, for "openai": "legacy", "new" or "edm"; the network's own if None.

    Returns:
        Their names to tensors, which share memory with the given ones where possible.

    Raises:
        ValueError: the layout has no names for such a network, or tensors are missing or surplus.
    """
    entries = layout_entries(config, layout)
    _check_names(tensors, {entry.ours for entry in entries}, "the network")
    found: dict[str, Tensor] = {}
    for entry in entries:
        tensor = tensors[entry.ours]
        if entry.qkv_channels:
            target: QkvLayout = "separate" if len(entry.theirs) == 3 else (qkv_layout or config.qkv_layout)
            tensor = reorder_qkv(tensor, config.heads(entry.qkv_channels), config.qkv_layout, target)
        for name, part in zip(entry.theirs, tensor.chunk(len(entry.theirs)), strict=True):
            found[name] = part[(..., *[None] * entry.trailing)]
    return found


def from_layout(
    tensors: Mapping[str, Tensor], config: UNetConfig, layout: Layout, *, qkv_layout: QkvLayout | None = None
) -> dict[str, Tensor]:
    """The inverse of `to_layout`: another project's tensors under a `UNet`'s names.

    Args:
        tensors: Of their file.
        config: The network's.
        layout: See `to_layout`.
        qkv_layout: Row order in their packed weight, for "openai"; the network's own if None.

    Raises:
        ValueError: tensors are missing or surplus; the first few are named.
    """
    entries = layout_entries(config, layout)
    _check_names(tensors, {name for entry in entries for name in entry.theirs}, f"a network in the {layout} layout")
    found: dict[str, Tensor] = {}
    for entry in entries:
        parts = [tensors[name] for name in entry.theirs]
        if entry.qkv_channels or entry.trailing:
            # Some files keep 1x1 convolutions where others have linear layers: the axes of size 1 say nothing.
            parts = [part.flatten(1) if part.dim() > 2 else part for part in parts]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if entry.qkv_channels:
            source: QkvLayout = "separate" if len(parts) == 3 else (qkv_layout or config.qkv_layout)
            tensor = reorder_qkv(tensor, config.heads(entry.qkv_channels), source, config.qkv_layout)
        found[entry.ours] = tensor
    return found


def _check_names(tensors: Mapping[str, Tensor], expected: set[str], what: str) -> None:
    wrong = [f"{name} is missing" for name in sorted(expected) if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    if wrong:
        more = f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ValueError(f"the tensors are not those of {what}: {'; '.join(wrong[:_MAX_LISTED])}{more}")
