"""Loading folders that diffusers wrote: a `UNet2DModel`, alone or in a pipeline, whole or in shards, of any variant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.convert.diffusers_config import diffusion_from_scheduler, size_from_diffusers, unet_config_from_diffusers
from fastdiff.convert.diffusers_unet import build_unet, tensors_from_diffusers
from fastdiff.convert.untrusted import is_state_dict, read_json, read_tensors
from fastdiff.files.checkpoint import LoadedModel, WeightKind
from fastdiff.files.contents import check_room, describing
from fastdiff.files.data import DataScaling
from fastdiff.nets.wrapped import plain_names
from fastdiff.process.arguments import advised
from fastdiff.process.checks import check_keys, height_and_width
from fastdiff.process.diffusion import Diffusion

__all__ = ["load_diffusers", "read_weights"]

_STEM = "diffusion_pytorch_model"
_FILE = re.compile(rf"{_STEM}(?:\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")
_INDEX = re.compile(rf"{_STEM}\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")
# The first that is there is taken; what is not named here comes last.
_VARIANTS = ("", "fp32", "fp16", "bf16")
_KINDS: dict[str, WeightKind] = {"ema": "ema", "non_ema": "raw"}


def load_diffusers(
    folder: Path,
    *,
    device: torch.device | str,
    weights: WeightKind | None,
    unet: Mapping[str, Any],
    diffusion: Diffusion | None,
) -> LoadedModel:
    """A `UNet2DModel` folder, or the folder of a pipeline that has one.

    Args:
        folder: As above.
        device: Where the network goes.
        weights: "ema" or "raw": where the folder has variants of both, which to take; else what the weights are.
        unet: {"image_size": in pixels, one number or (height, width)}, in place of the folder's.
        diffusion: The process, in place of the folder's.

    Raises:
        ValueError: something is missing, damaged, of a wrong type, or does not fit.
    """
    unet_folder = _part(folder, "unet", "config.json")
    if unet_folder is None:
        index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        raise ValueError(f"{folder} is a {index.get('_class_name', 'folder')} without a unet: nothing to load")
    settings = read_json(unet_folder / "config.json")
    check_keys(dict(unet), ["image_size"], f"unet= for {unet_folder}: such a folder says everything else")
    chosen = unet.get("image_size")
    with describing(unet_folder / "config.json"):
        height, width = size_from_diffusers(settings) if chosen is None else height_and_width("image_size", chosen)
        config = unet_config_from_diffusers(settings, image_size=height)
        if width % config.size_divisor:
            raise ValueError(f"the width must be divisible by {config.size_divisor} for this network, got {width}")
    learned = config.out_channels == 2 * config.in_channels
    said: dict[str, str] = {}
    scheduler = _part(folder, "scheduler", "scheduler_config.json") or _part(
        folder.parent, "scheduler", "scheduler_config.json"
    )
    if diffusion is not None:
        said["diffusion"] = "diffusion="
    elif scheduler is not None:
        path = scheduler / "scheduler_config.json"
        with describing(path):
            diffusion = diffusion_from_scheduler(read_json(path), learned_variance=learned)
    else:
        raise ValueError(
            f"{folder} does not say the process (T, schedule, prediction): there is no scheduler_config.json; give "
            "diffusion="
        )
    if diffusion.learned_variance != learned:
        raise ValueError(
            f"{unet_folder}: the network has {config.in_channels} input and {config.out_channels} output channels, "
            f"which does not fit variance={diffusion.variance!r}"
        )
    file, kind = _choose(unet_folder, weights)
    content = read_weights(file)
    with describing(file):
        check_room(config, len(content))
        tensors = tensors_from_diffusers(content, config, settings)
        network = build_unet(config, {name: value.float() for name, value in tensors.items()}, device=device)
    if weights is not None:
        said["weights"] = "weights="
    else:
        said["weights"] = "the file's name" if kind else "nothing: they may be the average or the trained ones"
    metadata: dict[str, Any] = {"path": str(folder), "format": "diffusers", "weights": kind, "said": said}
    metadata |= {"step": None, "training": None, "versions": None}
    # A network's configuration has one number for both.
    metadata["data"] = None if height == width else {"shape": [config.in_channels, height, width]}
    return LoadedModel(network, diffusion, DataScaling(), metadata)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or of the shards that an index file (.json) lists.

    Raises:
        ValueError: a file is missing or damaged, the index names a file outside of its folder, or the shards do not
            hold what it says.
    """
    if file.suffix != ".json":
        return _state_dict(file)
    index = read_json(file).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{file}: weight_map must map the tensors' names to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{file}: shards lie beside the index, got {name!r}")
        tensors |= _state_dict(file.with_name(name))
    if tensors.keys() != index.keys():
        wrong = sorted(tensors.keys() ^ index.keys())
        raise ValueError(f"{file}: index and shards differ in {len(wrong)} tensors, such as {wrong[0]}")
    return tensors


def _state_dict(file: Path) -> dict[str, Tensor]:
    content = read_tensors(file)
    if not is_state_dict(content):
        raise ValueError(f"{file} is not a state dict")
    with describing(file):
        return plain_names(content)


def _choose(folder: Path, weights: WeightKind | None) -> tuple[Path, WeightKind | None]:
    """The file to read, or the index of its shards, and what the weights are where that is known."""
    found: dict[tuple[str, str], Path] = {}
    # An index file sorts behind the whole file, and is taken before it: a folder has one of the two.
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name) or _INDEX.fullmatch(path.name)
        if match and path.is_file() and not re.search(r"-\d+-of-\d+", path.name):
            found[match["variant"] or "", match["kind"]] = path
    variants = {variant for variant, _ in found}
    of_kind = [name for name, kind in _KINDS.items() if name in variants and weights in (None, kind)]
    plain = [name for name in _VARIANTS if name in variants]
    other = sorted(variants - set(_VARIANTS) - set(_KINDS))
    if weights is not None and not of_kind and not plain and variants & set(_KINDS):
        has = _KINDS[(variants & set(_KINDS)).pop()]
        raise ValueError(f"{folder} holds {has!r} weights only by its name, got {advised('weights', weights)}")
    if weights is not None and of_kind:
        variant = of_kind[0]
    elif plain:
        variant = plain[0]
    elif len(of_kind + other) == 1:
        variant = (of_kind + other)[0]
    elif of_kind and not other:
        ways = " or ".join(advised("weights", kind) for kind in ("ema", "raw"))
        raise ValueError(f"{folder} holds the average and the trained weights: give {ways}")
    else:
        raise ValueError(
            f"{folder} holds no weights that could be chosen: expected {_STEM}.safetensors or .bin, whole or with an "
            f"index of shards, or one of its variants ({', '.join([*_VARIANTS[1:], *_KINDS])}); got "
            f"{', '.join(sorted(path.name for path in found.values())) or 'none'}"
        )
    for kind in ("safetensors", "bin"):
        if (variant, kind) in found:
            return found[variant, kind], weights or _KINDS.get(variant)
    raise AssertionError(variant)


def _part(folder: Path, name: str, file: str) -> Path | None:
    """The sub-folder of a pipeline's part, or the folder itself, where some pipelines keep everything."""
    for place in (folder / name, folder):
        if (place / file).is_file():
            return place
    return None
