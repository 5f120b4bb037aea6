"""EDM's networks (`SongUNet`, `DhariwalUNet` and their preconditioning) as fastdiff's, by their settings and names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.convert.unet_modules import NetworkModule, network_modules
from fastdiff.nets.blocks import filter_of
from fastdiff.nets.config import UNetConfig
from fastdiff.process.checks import check_keys

__all__ = ["NETWORKS", "from_edm", "unet_config_from_edm"]

NETWORKS = ("SongUNet", "DhariwalUNet")
"""Classes of networks in EDM's files."""

_SHARED: dict[str, Any] = {
    "img_resolution": 32,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "dropout": 0.10,
    "label_dropout": 0,
}
# Settings of the constructors and what they are where a file does not say.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": _SHARED
    | {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": _SHARED
    | {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]},
}
_RES = {
    "norm1": "norm0",
    "conv1": "conv0",
    "emb_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "skip": "skip",
}
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj": "proj"}
_MAX_LISTED = 5


def unet_config_from_edm(network: str, settings: Mapping[str, Any]) -> UNetConfig:
    """The configuration of one of EDM's networks.

    Args:
        network: "SongUNet" (DDPM++ and NCSN++) or "DhariwalUNet" (ADM).
        settings: Arguments of its constructor; those left out have its defaults.

    Raises:
        ValueError: another network, a setting that it does not have, or one that fastdiff has no network for, named.

    Source: Karras et al. (2022), arXiv:2206.00364, appendix F and table 7.
    """
    if network not in NETWORKS:
        raise ValueError(f"the network is a {network}, and fastdiff has EDM's {' and '.join(NETWORKS)}")
    check_keys(dict(settings), list(_DEFAULTS[network]), f"the settings of a {network}")
    given = _DEFAULTS[network] | dict(settings)
    width, mults = given["model_channels"], tuple(given["channel_mult"])
    if given["channel_mult_emb"] != 4:
        raise ValueError(f"channel_mult_emb must be 4, got {given['channel_mult_emb']!r}: fastdiff has no such network")
    sizes = [given["img_resolution"] >> level for level in range(len(mults))]
    fields: dict[str, Any] = {
        "image_size": given["img_resolution"],
        "in_channels": given["in_channels"],
        "out_channels": given["out_channels"],
        "channels": width,
        "channel_mult": mults,
        "num_res_blocks": given["num_blocks"],
        "attention_resolutions": tuple(size for size in sizes if size in given["attn_resolutions"]),
        "dropout": given["dropout"],
        "resblock_updown": True,
        "num_classes": given["label_dim"] or None,
        "augment_channels": given["augment_dim"] or None,
        "qkv_layout": "edm",
    }
    if network == "DhariwalUNet":
        # Fewer than 32 groups only where a level has less than 128 channels.
        small = any(width * mult < 128 or width * mult % 32 for mult in mults)
        return UNetConfig.from_dict(
            fields
            | {
                "norm_eps": 1e-5,
                "time_embedding": "cos_sin",
                "downsample_padding": "symmetric",
                "scale_shift_norm": True,
                "head_channels": 64,
                "min_group_channels": 4 if small else 1,
            }
        )
    kinds = {"positional": "sin_cos", "fourier": "fourier"}
    for name, known in (
        ("embedding_type", list(kinds)),
        ("encoder_type", ["standard", "residual"]),
        ("decoder_type", ["standard"]),
    ):
        if given[name] not in known:
            raise ValueError(f"{name} must be {' or '.join(known)}, got {given[name]!r}: fastdiff has no such network")
    noise_width = width * given["channel_mult_noise"]
    return UNetConfig.from_dict(
        fields
        | {
            "time_embedding": kinds[given["embedding_type"]],
            "time_channels": None if noise_width == width else noise_width,
            "stem_channels": width,
            "skip_scale": math.sqrt(0.5),
            "resample_filter": tuple(given["resample_filter"]),
            "resample_projection": True,
            "decoder_attention": "last",
            "input_pyramid": given["encoder_type"] == "residual",
            "label_place": "before_mlp",
            "min_group_channels": 4,
        }
    )


def from_edm(tensors: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The tensors of one of EDM's networks under a `UNet`'s names.

    The linear layer that EDM gives one-hot vectors of labels becomes an embedding; in DDPM++ and NCSN++ with the
    layer's bias and the factor sqrt(number of labels), which their vectors have.

    Args:
        tensors: Parameters and buffers.
        config: The network's, of `unet_config_from_edm`.

    Raises:
        ValueError: tensors are missing or surplus, the first few are named; a filter is another than the
            configuration's.
    """
    is_song = config.stem_channels is not None
    left = dict(tensors)
    _drop_filters(left, config)
    found: dict[str, Tensor] = {}
    missing = []

    def take(name: str) -> Tensor | None:
        if name not in left:
            missing.append(f"{name} is missing")
        return left.pop(name, None)

    for ours, theirs in _names(config, is_song):
        value = take(theirs)
        if value is not None:
            found[ours] = value.flatten(1) if ".qkv.w" in ours or ".proj.w" in ours else value
    if config.num_classes is not None:
        weight = take("map_label.weight")
        bias = take("map_label.bias") if is_song else None
        if weight is not None and is_song and bias is not None:
            found["label_emb.weight"] = weight.T * math.sqrt(weight.shape[1]) + bias
        elif weight is not None:
            found["label_emb.weight"] = weight.T.contiguous()
    wrong = missing + [f"{name} is unknown" for name in left]
    if wrong:
        more = f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ValueError(f"the tensors are not those of such a network: {'; '.join(wrong[:_MAX_LISTED])}{more}")
    return found


def _drop_filters(tensors: dict[str, Tensor], config: UNetConfig) -> None:
    """Take the buffers of filters out, which must be what the configuration says."""
    for name in [name for name in tensors if name.endswith(".resample_filter")]:
        value = tensors.pop(name)
        expected = filter_of(config.resample_filter, value)[None, None]
        if value.shape != expected.shape or not torch.allclose(value, expected, rtol=1e-6):
            raise ValueError(f"{name} is not the filter {list(config.resample_filter)} of the settings")


def _names(config: UNetConfig, is_song: bool) -> Iterator[tuple[str, str]]:
    """Names of all tensors but the labels', ours and theirs."""
    sizes = [f"{size}x{size}" for size in config.level_sizes]
    for module in network_modules(config):
        if module.kind == "embedding":
            continue
        theirs = _module_name(module, sizes, is_song)
        parts = {"res": _RES, "attention": _ATTENTION}.get(module.kind, {"": ""})
        for ours, name in parts.items():
            if ours == "skip" and not module.has_skip:
                continue
            for end in ("weight", "bias"):
                yield ".".join(filter(None, (module.name, ours, end))), ".".join(filter(None, (theirs, name, end)))
    if config.time_embedding == "fourier":
        yield "time_freqs", "map_noise.freqs"
    if config.augment_channels is not None:
        yield "augment_emb.weight", "map_augment.weight"
    if config.input_pyramid:
        for level, size in enumerate(sizes[1:], 1):
            for end in ("weight", "bias"):
                yield f"pyramid.{level * (config.num_res_blocks + 1)}.{end}", f"enc.{size}_aux_residual.{end}"


def _module_name(module: NetworkModule, sizes: list[str], is_song: bool) -> str:
    size = sizes[module.level]
    if module.part == "stem":
        return f"enc.{size}_conv" if module.kind == "conv" else f"map_layer{module.index}"
    if module.part == "head":
        return f"dec.{sizes[0]}_aux_{module.kind}" if is_song else f"out_{module.kind}"
    if module.part == "middle":
        return f"dec.{size}_in{module.index if module.kind == 'res' else 0}"
    if module.part == "downsample":
        return f"enc.{sizes[module.level + 1]}_down"
    if module.part == "upsample":
        return f"dec.{sizes[module.level - 1]}_up"
    return f"{'enc' if module.part == 'down' else 'dec'}.{size}_block{module.index}"
