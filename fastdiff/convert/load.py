"""One loader for the files that people have: it recognises a file by its contents and says what it cannot know."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from fastdiff.convert.diffusers_folder import load_diffusers
from fastdiff.convert.diffusers_unet import build_unet
from fastdiff.convert.edm_files import load_edm
from fastdiff.convert.infer import Inferred, infer_ddim, infer_openai, recognise
from fastdiff.convert.layouts import Layout, from_layout
from fastdiff.convert.lucidrains import LUCIDRAINS_HINTS, load_lucidrains
from fastdiff.convert.openai_flags import diffusion_from_flags, parse_flags, rescaled, unet_config_from_flags
from fastdiff.convert.published import KnownModel, known_file, known_preset
from fastdiff.convert.score_sde import is_score_sde, load_score_sde
from fastdiff.convert.untrusted import is_optimizer_state, is_state_dict, read_json, read_tensors
from fastdiff.files.checkpoint import FORMAT, LoadedModel, WeightKind
from fastdiff.files.contents import check_data, check_room, check_sum, describing
from fastdiff.files.data import DataScaling
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.wrapped import plain_names
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import check_keys, height_and_width, shown
from fastdiff.process.diffusion import Diffusion

__all__ = ["SIDECAR_KEYS", "Hints", "is_foreign", "load_foreign", "sidecar_path"]

SIDECAR_KEYS = ("format", "unet", "diffusion", "scaling", "weights", "flags")
"""Keys of the JSON file that fastdiff writes beside a .pt file, since the latter says so little.

"data" is there as well where the images are not square, and "checksum" in files that are not of an older release.
"""

# What the caller may say about a network; the rest is read off the file.
_UNET_HINTS = (
    "image_size",
    "num_heads",
    "head_channels",
    "qkv_layout",
    "dropout",
    "norm_groups",
    "norm_eps",
    "time_embedding",
    "downsample_padding",
)
_SAID_BY_FILE = (
    "in_channels",
    "out_channels",
    "channels",
    "num_res_blocks",
    "num_classes",
    "scale_shift_norm",
    "resblock_updown",
    "conv_resample",
)


@dataclasses.dataclass(frozen=True)
class Hints:
    """What the caller knows of a file that the file does not say.

    Attributes:
        preset: A name in `fastdiff.nets.config.PRESETS`.
        flags: Flags of improved- or guided-diffusion's scripts, as one line or a mapping.
        unet: Fields of `UNetConfig`: image_size (one number or (height, width)), num_heads, head_channels, qkv_layout,
            dropout, norm_groups, norm_eps, time_embedding and downsample_padding. They win over the other sources. For
            lucidrains' files image_size, sinusoidal_pos_emb_theta and self_condition.
        diffusion: The process. It wins over the other sources.

    Raises:
        ValueError: a field that files do say, or an unknown one.
    """

    preset: str | None = None
    flags: str | Mapping[str, Any] | None = None
    unet: Mapping[str, Any] | None = None
    diffusion: Diffusion | None = None

    def __post_init__(self) -> None:
        known = dict.fromkeys((*_UNET_HINTS, *LUCIDRAINS_HINTS))
        check_keys(dict(self.unet or {}), known, "what files do not say of a network (unet=)")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given."""
        return all(getattr(self, field.name) is None for field in dataclasses.fields(self))


def is_foreign(path: Path) -> bool:
    """Whether a path is another project's: a file, or a folder that diffusers wrote."""
    if path.is_file():
        return True
    if (path / "model_index.json").is_file():
        return True
    return (path / "config.json").is_file() and "_class_name" in read_json(path / "config.json")


def load_foreign(
    path: Path, *, device: torch.device | str = "cpu", weights: str | None = None, hints: Hints | None = None
) -> LoadedModel:
    """Load a diffusers folder, or a weights file of improved- or guided-diffusion, ddim, Ho or lucidrains.

    Args:
        path: The folder or file.
        device: Where the network goes.
        weights: "ema" or "raw", where the file has both; None takes the average if there is one.
        hints: What the file does not say.

    Returns:
        The model. Its metadata holds "format", the project, and "said": where each thing that the file does not say
        was taken from.

    Raises:
        ValueError: the file is not recognised, is refused or damaged, contradicts what is given, or leaves something
            open that nothing else says; the message lists what.
    """
    hints = hints or Hints()
    kinds = get_args(WeightKind)
    if weights is not None and weights not in kinds:
        name = spelt("weights")
        raise ValueError(f"{path} is of another project, so {name} must be 'ema' or 'raw', got {shown(weights)}")
    chosen = cast(WeightKind | None, weights)
    if path.is_dir():
        if hints.preset is not None or hints.flags is not None:
            raise ValueError(f"{path} holds its configuration: leave out preset= and flags=")
        return load_diffusers(path, device=device, weights=chosen, unet=hints.unet or {}, diffusion=hints.diffusion)
    if path.suffix == ".pkl":
        if hints.preset is not None or hints.flags is not None or hints.unet:
            raise ValueError(
                f"{path} is a file of EDM's code, which says everything: leave out preset=, flags= and unet="
            )
        return load_edm(path, device=device, weights=chosen, diffusion=hints.diffusion)
    content = read_tensors(path)
    if is_score_sde(content):
        if hints.preset is not None or hints.flags is not None:
            raise ValueError(f"{path} is a checkpoint of score_sde: preset= and flags= are of other projects")
        options: dict[str, Any] = {"unet": hints.unet or {}, "diffusion": hints.diffusion}
        return load_score_sde(content, path, device=device, weights=chosen, **options)
    tensors, kind = _choose_weights(content, path, chosen)
    tensors = _plain(tensors, path)
    if _is_lucidrains(tensors):
        if hints.preset is not None or hints.flags is not None:
            raise ValueError(f"{path} is a lucidrains model: preset= and flags= are of other projects")
        return load_lucidrains(tensors, path, kind, device=device, unet=hints.unet or {}, diffusion=hints.diffusion)
    found = recognise(tensors)
    if found in ("openai", "ddim"):
        return _load_openai_or_ddim(tensors, path, kind, cast(Layout, found), device, hints)
    if found == "diffusers":
        raise ValueError(f"{path} is the weights of a diffusers network: give its folder, which holds config.json")
    if found == "fastdiff":
        raise ValueError(f"{path} is the weights of a fastdiff model: give its folder, which holds config.json")
    names = ", ".join(list(tensors)[:3])
    raise ValueError(
        f"{path} is not a network that fastdiff knows; its first tensors are {names}. Known: diffusers UNet2DModel "
        "folders, improved- and guided-diffusion, ddim, Ho and lucidrains files, EDM's .pkl and score_sde's checkpoints"
    )


def _plain(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    with describing(path):
        return plain_names(tensors)


def sidecar_path(path: Path) -> Path:
    """Where fastdiff writes what a weights file cannot hold."""
    return path.with_name(path.name + ".json")


def _choose_weights(
    content: Any, path: Path, weights: WeightKind | None
) -> tuple[Mapping[str, Tensor], WeightKind | None]:
    """The tensors of the network in a file, and whether they are an average, as far as the file or its name says."""
    choices: dict[str, Any] = {}
    if isinstance(content, list | tuple):
        # ermongroup/ddim: [model, optimizer, epoch, step, average].
        states = [part for part in content if is_state_dict(part)]
        choices = dict(zip(("raw", "ema"), states, strict=False))
    elif isinstance(content, Mapping) and not is_state_dict(content):
        if is_state_dict(content.get("model")):
            choices["raw"] = content["model"]
        elif is_state_dict(content.get("state_dict")):
            choices["raw"] = content["state_dict"]
        if is_state_dict(content.get("ema")):
            average = {
                name.removeprefix("ema_model."): value
                for name, value in _plain(content["ema"], path).items()
                if name.startswith("ema_model.")
            }
            # lucidrains' average wraps the whole process, others keep the plain names.
            choices["ema"] = average or content["ema"]
    elif is_state_dict(content):
        kind = _kind_by_name(path)
        if weights is not None and kind is not None and weights != kind:
            raise ValueError(f"{path} holds {kind!r} weights by its name, got {advised('weights', weights)}")
        return content, weights or kind
    if not choices:
        held = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, Mapping) else type(content).__name__
        if isinstance(content, Mapping) and any(is_optimizer_state(part) for part in content.values()):
            held += ", with an optimizer"
        raise ValueError(f"{path} holds no weights of a network, only: {held or 'nothing'}")
    wanted = weights or ("ema" if "ema" in choices else "raw")
    if wanted not in choices:
        raise ValueError(f"{path} holds {', '.join(choices)} weights only, got {advised('weights', weights)}")
    return choices[wanted], wanted


def _kind_by_name(path: Path) -> WeightKind | None:
    if re.match(r"ema[_\d.-]", path.name):
        return "ema"
    return "raw" if re.match(r"model\d*\.", path.name) else None


def _is_lucidrains(tensors: Mapping[str, Tensor]) -> bool:
    bare = {name.removeprefix("model."): value for name, value in tensors.items()}
    return recognise(bare) == "lucidrains"


def _load_openai_or_ddim(
    tensors: Mapping[str, Tensor],
    path: Path,
    kind: WeightKind | None,
    layout: Layout,
    device: torch.device | str,
    hints: Hints,
) -> LoadedModel:
    try:
        inferred = infer_openai(tensors) if layout == "openai" else infer_ddim(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_keys(dict(hints.unet or {}), _UNET_HINTS, f"unet= for {path}, a network of the {layout} layout")
    if inferred.fields["in_channels"] == 6 and inferred.fields["out_channels"] in (3, 6):
        raise ValueError(
            f"{path} is a super-resolution network (6 input channels, 3 of them the small image): load it with "
            "fastdiff.compat.guided_diffusion.script_util.sr_create_model"
        )
    sidecar = read_json(sidecar_path(path)) if sidecar_path(path).is_file() and hints.is_empty else None
    if sidecar is not None and sidecar.get("format") == FORMAT:
        config, diffusion, scaling, kind, data = _read_sidecar(sidecar, path)
        source = sidecar_path(path).name
        _check_agreement(path, inferred, KnownModel(source, config, diffusion))
        said = {"everything but the shapes": source}
    else:
        config, diffusion, said, data = _resolve(path, inferred, layout, hints)
        scaling = DataScaling()
        said["weights"] = "the file's name" if kind else "nothing: they may be the average or the trained ones"
    with describing(path):
        check_room(config, len(tensors))
        fitted = from_layout(tensors, config, layout)
        unet = build_unet(config, {name: value.float() for name, value in fitted.items()}, device=device)
    metadata = {"path": str(path), "format": layout, "weights": kind, "said": said}
    metadata |= {"step": None, "training": None, "data": data, "versions": None}
    return LoadedModel(unet, diffusion, scaling, metadata)


def _read_sidecar(
    sidecar: dict[str, Any], path: Path
) -> tuple[UNetConfig, Diffusion, DataScaling, WeightKind | None, dict[str, Any] | None]:
    """What fastdiff wrote beside a weights file of its own: network, process, scaling, kind of weights, data."""
    where = sidecar_path(path)
    with describing(where):
        check_keys(sidecar, [*SIDECAR_KEYS, "data", "checksum"], "what stands beside a weights file")
        missing = [key for key in SIDECAR_KEYS if key not in sidecar]
        if missing:
            raise ValueError(f"missing keys: {', '.join(missing)}")
        if sidecar["weights"] not in ("ema", "raw", None):
            raise ValueError(f"weights must be 'ema', 'raw' or null, got {sidecar['weights']!r}")
        check_data(sidecar.get("data"))
    with describing(where, "unet"):
        config = UNetConfig.from_dict(sidecar["unet"])
    with describing(where, "diffusion"):
        diffusion = Diffusion.from_dict(sidecar["diffusion"])
    with describing(where, "scaling"):
        scaling = DataScaling.from_dict(sidecar["scaling"])
    check_sum(path, sidecar.get("checksum"), said_by=where)
    return config, diffusion, scaling, sidecar["weights"], sidecar.get("data")


def _resolve(
    path: Path, inferred: Inferred, layout: Layout, hints: Hints
) -> tuple[UNetConfig, Diffusion, dict[str, str], dict[str, Any] | None]:
    """Configuration and process, from the file and what else is known; who said what; the shape if not square."""
    sources = _sources(path, layout, hints)
    for source in sources:
        _check_agreement(path, inferred, source)
    fields = dict(inferred.fields)
    said: dict[str, str] = {}
    heads_needed = layout == "openai"
    open_fields = [name for name in _UNET_HINTS if name not in fields]
    for source in sources:
        for name in open_fields:
            if name not in said:
                fields[name] = getattr(source.unet, name)
                said[name] = source.source
    for name, value in (hints.unet or {}).items():
        fields[name] = value
        said[name] = "unet="
    if "num_heads" in (hints.unet or {}) and "head_channels" not in (hints.unet or {}):
        fields["head_channels"] = None
    diffusion, said["diffusion"] = hints.diffusion, "diffusion="
    if diffusion is None:
        known = next((source for source in sources if source.diffusion is not None), None)
        diffusion, said["diffusion"] = (None, "") if known is None else (known.diffusion, known.source)
    if heads_needed and "qkv_layout" not in said and fields.get("num_heads") == 1 and not fields.get("head_channels"):
        # With one head all orders of OpenAI's are the same.
        fields["qkv_layout"], said["qkv_layout"] = "legacy", "the single head"
    missing = []
    if "image_size" not in said:
        missing.append("the size of the images (image_size)")
    if heads_needed and not {"num_heads", "head_channels"} & said.keys():
        missing.append("the heads of attention (num_heads or head_channels)")
    if heads_needed and "qkv_layout" not in said:
        missing.append("the order of attention's qkv rows (qkv_layout: 'legacy', or 'new' for ADM 64)")
    if diffusion is None:
        missing.append("the process: T, schedule, prediction and variance (diffusion)")
    if missing or diffusion is None:
        ways = ["preset= (a published network: " + ", ".join(_presets_like(layout)) + ")"]
        ways += ["flags= (of OpenAI's scripts)"] if layout == "openai" else []
        raise ValueError(
            f"{path} is a network of the {layout} layout with {_summary(inferred)}. The file does not say: "
            f"{'; '.join(missing)}. Give {' or '.join(ways)}, or diffusion= and unet={{...}}"
        )
    if fields.get("head_channels") is not None:
        fields["num_heads"] = 1
    fields.setdefault("dropout", 0.0)
    height, width = height_and_width("image_size", fields["image_size"])
    fields["image_size"] = height
    fields["attention_resolutions"] = tuple(height >> level for level in inferred.attention_levels)
    config = UNetConfig.from_dict(fields)
    if width % config.size_divisor:
        raise ValueError(f"{path}: the width must be divisible by {config.size_divisor} for this network, got {width}")
    data = None if height == width else {"shape": [config.in_channels, height, width]}
    return config, _fitting(path, diffusion, inferred), said, data


def _sources(path: Path, layout: Layout, hints: Hints) -> list[KnownModel]:
    """What is known of the network as a whole: the flags first, then the preset, then the file's name."""
    sources: list[KnownModel] = []
    if hints.flags is not None:
        if layout != "openai":
            raise ValueError(f"{path} is of the {layout} layout: flags= are those of OpenAI's scripts")
        flags = parse_flags(hints.flags)
        # A process that is given counts: the flags then need not say one.
        process = diffusion_from_flags(flags) if hints.diffusion is None else None
        sources.append(KnownModel("flags=", unet_config_from_flags(flags), process))
    if hints.preset is not None:
        known = known_preset(hints.preset)
        if layout == "openai" and hints.preset.startswith("iddpm") and known.diffusion is not None:
            # improved-diffusion's networks see times in [0, 1000), whatever T is.
            schedule = rescaled(known.diffusion.schedule)
            known = dataclasses.replace(known, diffusion=dataclasses.replace(known.diffusion, schedule=schedule))
        sources.append(known)
    named = known_file(path.name)
    if named is not None and not sources:
        sources.append(named)
    return sources


def _check_agreement(path: Path, inferred: Inferred, known: KnownModel) -> None:
    """Raise where the file's shapes contradict a network that somebody says it is."""
    wrong = [
        f"{name} is {inferred.fields[name]!r} in the file, {getattr(known.unet, name)!r} there"
        for name in _SAID_BY_FILE
        if inferred.fields[name] != getattr(known.unet, name)
        # Where residual blocks resample, this field is not read.
        and not (name == "conv_resample" and known.unet.resblock_updown)
    ]
    if tuple(inferred.fields["channel_mult"]) != tuple(known.unet.channel_mult):
        wrong.append(f"channel_mult is {inferred.fields['channel_mult']} in the file, {known.unet.channel_mult} there")
    else:
        levels = [i for i, size in enumerate(known.unet.level_sizes) if size in known.unet.attention_resolutions]
        if levels != list(inferred.attention_levels):
            wrong.append(f"attention is at levels {list(inferred.attention_levels)} in the file, {levels} there")
    if wrong:
        raise ValueError(f"{path} is not the network of {known.source}: {'; '.join(wrong)}")


def _fitting(path: Path, diffusion: Diffusion, inferred: Inferred) -> Diffusion:
    if diffusion.learned_variance != inferred.learned_variance:
        has = "twice" if inferred.learned_variance else "not twice"
        raise ValueError(
            f"{path}: the output has {has} the channels of the input, so the variance is "
            f"{'learned' if inferred.learned_variance else 'fixed'}, but the process has {diffusion.variance!r}"
        )
    return diffusion


def _summary(inferred: Inferred) -> str:
    fields = inferred.fields
    classes = f", {fields['num_classes']} classes" if fields["num_classes"] else ""
    return (
        f"{fields['channels']} channels x {fields['channel_mult']}, {fields['num_res_blocks']} blocks, attention at "
        f"levels {list(inferred.attention_levels)}{classes}, variance "
        f"{'learned' if inferred.learned_variance else 'fixed'}"
    )


def _presets_like(layout: Layout) -> list[str]:
    return ["ho-cifar10", "ho-256"] if layout == "ddim" else ["iddpm-cifar10", "adm-imagenet64", "..."]
