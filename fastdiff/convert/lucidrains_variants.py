"""lucidrains' live networks of other versions, and its `Unet1D`, as fastdiff's, by their structure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.nets.lucidrains_variants import UnetParts, VariantUnet

__all__ = ["is_variant", "variant_from_lucidrains"]

# Parts of versions that the engine has no instructions for, and what they are called in a message.
_REFUSED = {
    "ConvNextBlock": "its blocks are ConvNeXt's, with a convolution of each channel",
    "Mish": "its activation is Mish",
    "Rezero": "its attention is multiplied by a learned number",
    "ConvTranspose2d": "it doubles by a transposed convolution",
}


def is_variant(model: nn.Module) -> bool:
    """Whether a `Unet` of lucidrains is not today's: its blocks or its attention have other norms."""
    return "downs.0.2.mem_kv" not in model.state_dict() or any(isinstance(m, nn.GroupNorm) for m in model.modules())


@torch.no_grad()
def variant_from_lucidrains(model: Any) -> VariantUnet:
    """A copy of a live network.

    Raises:
        ValueError: it has a part that the engine does not know, which is named.
    """
    for name, module in model.named_modules():
        if type(module).__name__ in _REFUSED:
            raise ValueError(f"{_REFUSED[type(module).__name__]} ({name} is a {type(module).__name__})")
    levels = [list(level) for level in model.downs]
    for level in levels:
        if len(level) != 4:
            raise ValueError(f"its levels have {len(level)} parts, and fastdiff knows those of 4")
    # Around an attention there may be a sum and a norm; names of parameters follow from here on.
    tensors = {
        re.sub(r"\.fn\.fn\.|\.fn\.(?=norm\.)", ".", name): value.detach() for name, value in model.state_dict().items()
    }
    parts, settings = _parts_and_settings(model, levels, tensors)
    unet: Any = _loaded(parts, settings, tensors)
    if parts.num_memory == 0 and not _attends_alike(levels[0][2], unet.downs[0][2]):
        unet = _loaded(replace(parts, divides_values=True), settings, tensors)
        if not _attends_alike(levels[0][2], unet.downs[0][2]):
            raise ValueError("its attention of the first level, downs.0.2, computes something else")
    if parts.num_memory == 0 and not _attends_alike(model.mid_attn, unet.mid_attn):
        raise ValueError("its attention in the middle, mid_attn, is none of products of queries and keys alone")
    found: VariantUnet = unet
    return found


def _inner(module: Any) -> Any:
    """An attention without what is around it."""
    while hasattr(module, "fn"):
        module = module.fn
    return module


def _parts_and_settings(
    model: Any, levels: list[list[Any]], tensors: Mapping[str, Tensor]
) -> tuple[UnetParts, dict[str, Any]]:
    attentions = [_inner(level[2]) for level in levels]
    middle = _inner(model.mid_attn)
    norm = levels[0][0].block1.norm
    projection = levels[0][0].block1.proj
    is_flat = isinstance(model.init_conv, nn.Conv1d)
    dim = tensors["time_mlp.1.weight"].shape[0] // 4
    halving = levels[0][3]
    memory = tensors["mid_attn.mem_kv"].shape[2] if "mid_attn.mem_kv" in tensors else 0
    parts = UnetParts(
        norm_groups=norm.num_groups if isinstance(norm, nn.GroupNorm) else None,
        standardized=type(projection).__name__ == "WeightStandardizedConv2d",
        layer_norm=any(type(module).__name__ == "LayerNorm" for module in model.modules()),
        num_memory=memory,
        divides_values=False,
        mid_heads=int(middle.heads),
        mid_head_dim=middle.to_qkv.weight.shape[0] // 3 // int(middle.heads),
        halves="convolution" if len(levels) > 1 and hasattr(halving, "kernel_size") else "pixels",
        is_flat=is_flat,
    )
    if len(levels) == 1 and is_flat:
        parts = replace(parts, halves="convolution")
    has_features = "time_mlp.0.weights" in tensors
    outputs = [(level[3] if hasattr(level[3], "weight") else level[3][1]).weight.shape[0] for level in levels]
    self_condition = bool(getattr(model, "self_condition", False))
    channels = model.init_conv.weight.shape[1] // (2 if self_condition else 1)
    settings: dict[str, Any] = {
        "dim": dim,
        "init_dim": model.init_conv.weight.shape[0],
        "out_dim": model.final_conv.weight.shape[0],
        "dim_mults": tuple(width // dim for width in outputs),
        "channels": channels,
        "self_condition": self_condition,
        "learned_sinusoidal_cond": has_features,
        "learned_sinusoidal_dim": 2 * tensors["time_mlp.0.weights"].shape[0] if has_features else 16,
        "sinusoidal_pos_emb_theta": getattr(model.time_mlp[0], "theta", 10000),
        "attn_heads": tuple(int(attention.heads) for attention in attentions),
        "attn_dim_head": tuple(a.to_qkv.weight.shape[0] // 3 // int(a.heads) for a in attentions),
        "full_attn": tuple(not isinstance(attention.to_out, nn.Sequential) for attention in attentions),
    }
    return parts, settings


def _loaded(parts: UnetParts, settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> VariantUnet:
    with torch.device("meta"):
        unet = VariantUnet(parts, settings)
    unet.to_empty(device="cpu").to(tensors["init_conv.weight"].dtype)
    own = unet.state_dict()
    if unknown := sorted(set(tensors) - set(own)):
        raise ValueError(f"it has a part that is not known, {unknown[0]}")
    for name, value in own.items():
        given = tensors.get(name)
        if given is None and (name.endswith(".b") or value.numel() == 0):
            value.zero_()
            continue
        if given is None or given.numel() != value.numel():
            found = "missing" if given is None else list(given.shape)
            raise ValueError(f"{name} is {found} where {list(value.shape)} is expected")
        value.copy_(given.reshape(value.shape))
    return unet.eval()


def _attends_alike(theirs: Any, ours: Any) -> bool:
    """Whether an attention, with what is around it, is ours."""
    inner = _inner(theirs)
    channels = inner.to_qkv.weight.shape[1]
    x = torch.randn(1, channels, 2, 4, generator=torch.Generator().manual_seed(0))
    x = x.to(inner.to_qkv.weight.dtype)
    if inner.to_qkv.weight.ndim == 3:
        x = x[:, :, :1]
    given = x[:, :, 0] if inner.to_qkv.weight.ndim == 3 else x
    expected = theirs(given)
    if hasattr(theirs, "fn"):
        expected = expected - given
    found = ours(x).reshape(expected.shape)
    scale = expected.abs().max().clamp_min(1e-30)
    return bool((found - expected).abs().max() < 1e-3 * scale)
