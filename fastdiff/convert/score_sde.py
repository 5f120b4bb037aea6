"""score_sde's checkpoints in PyTorch: DDPM++ and NCSN++ of Song et al. (2021), with their average."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.convert.diffusers_unet import build_unet
from fastdiff.convert.edm_files import diffusion_from_edm
from fastdiff.convert.layouts import reorder_qkv
from fastdiff.convert.unet_modules import network_modules
from fastdiff.convert.untrusted import is_state_dict
from fastdiff.files.checkpoint import LoadedModel, WeightKind
from fastdiff.files.contents import describing
from fastdiff.files.data import DataScaling
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.wrapped import plain_names
from fastdiff.process.checks import check_keys, height_and_width
from fastdiff.process.diffusion import Diffusion

__all__ = ["from_score_sde", "infer_score_sde", "is_score_sde", "load_score_sde", "to_score_sde"]

_RES = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "emb_proj": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
_ATTENTION_SIZE = 16
_HINTS = ("image_size",)
# Of score_sde's networks: what `infer_score_sde` says of them beside what their shapes do.
_FIXED = (
    "resblock_updown", "skip_scale", "resample_projection", "decoder_attention", "scale_shift_norm", "norm_eps",
    "norm_groups", "min_group_channels", "num_classes", "augment_channels", "num_heads", "head_channels",
    "resample_filter",
)  # fmt: skip
# Weights of an average, as their training has it, and their learning rate.
_EMA_DECAY, _LEARNING_RATE = 0.999, 2e-4


def is_score_sde(content: Any) -> bool:
    """Whether an object is what score_sde's training saves."""
    model = content.get("model") if isinstance(content, Mapping) else None
    return (
        isinstance(model, Mapping)
        and is_state_dict(model)
        and isinstance(content.get("ema"), Mapping)
        and "shadow_params" in content["ema"]
        and any(re.match(r"(module\.)?all_modules\.0\.", name) for name in model)
    )


def load_score_sde(
    content: Mapping[str, Any],
    path: Path,
    *,
    device: torch.device | str,
    weights: WeightKind | None,
    unet: Mapping[str, Any],
    diffusion: Diffusion | None,
) -> LoadedModel:
    """A model from a checkpoint of score_sde's.

    The process follows from the embedding: Fourier features are those of the variance-exploding networks, whose levels
    are in the file, sines of a time those of the variance-preserving ones, with beta from 0.1 to 20. Networks see data
    in [-1, 1], for which the levels of data in [0, 1] are doubled.

    Args:
        content: Of the file.
        path: For messages.
        device: Where the network goes.
        weights: "ema" (None as well), or "raw".
        unet: "image_size", where attention is not at 16 x 16 pixels, as in the authors' configurations.
        diffusion: The process, in the place of the one above: sub-VP networks, for example, say nothing of it.

    Raises:
        ValueError: the network is another one of score_sde's, or the average does not fit.
    """
    check_keys(dict(unet), _HINTS, f"unet= for {path}: such a file says everything else")
    with describing(path):
        tensors = plain_names(content["model"])
        sigmas = tensors.pop("sigmas", None)
        if weights != "raw":
            tensors = _averaged(tensors, content["ema"]["shadow_params"])
        config, said_size = infer_score_sde(tensors, unet.get("image_size"))
        fitted = from_score_sde(tensors, config)
        is_exploding = config.time_embedding == "fourier"
        if diffusion is None:
            diffusion = _process(is_exploding, sigmas)
        if is_exploding:
            # Its output is minus the noise.
            for end in ("weight", "bias"):
                fitted[f"conv_out.{end}"] = -fitted[f"conv_out.{end}"]
        network = build_unet(config, {name: value.float() for name, value in fitted.items()}, device=device)
    said = {"image_size": said_size, "diffusion": "the embedding of the time, and the authors' configurations"}
    metadata: dict[str, Any] = {"path": str(path), "format": "score_sde", "weights": weights or "ema", "said": said}
    metadata |= {"step": None, "training": None, "data": None, "versions": None}
    return LoadedModel(network, diffusion, DataScaling(), metadata)


def infer_score_sde(tensors: Mapping[str, Tensor], image_size: Any = None) -> tuple[UNetConfig, str]:
    """The configuration of a network by its tensors, and who said the size of the images.

    Raises:
        ValueError: it is none of DDPM++ and NCSN++ with residual blocks of BigGAN's kind and one output.
    """
    modules = _modules(tensors)
    kinds = [_kind(module) for module in modules]
    has_fourier = kinds[0] == "fourier"
    embed = modules[has_fourier]
    if kinds[has_fourier : has_fourier + 3] != ["linear", "linear", "conv"] or kinds[-2:] != ["norm", "conv"]:
        raise ValueError("its modules are not those of DDPM++ or NCSN++ of score_sde's `ncsnpp` with one output")
    stem = modules[has_fourier + 2]["weight"]
    changes = [n for n, module in enumerate(modules) if kinds[n] == "res" and _resamples(module)]
    levels = len(changes) // 2 + 1
    if levels < 2 or len(changes) % 2:
        raise ValueError("it has no residual blocks that resample (resblock_type 'biggan'), or one level alone")
    first = has_fourier + 3
    blocks = [n for n in range(first, changes[0]) if kinds[n] == "res"]
    starts = [first, *(n + 1 + (kinds[n + 1] == "pyramid") for n in changes[: levels - 1])]
    width = stem.shape[0]
    mults = [modules[n]["Conv_0.weight"].shape[0] / width for n in starts]
    attends = [level for level, n in enumerate(starts) if kinds[n + 1] == "attention"]
    said = "unet="
    if image_size is None:
        if len(attends) != 1:
            raise ValueError("the size of its images is not known: give unet={'image_size': 32}, for example")
        image_size, said = _ATTENTION_SIZE << attends[0], "attention, which the authors have at 16 x 16 pixels"
    size = height_and_width("image_size", image_size)[0]
    has_pyramid = "pyramid" in kinds
    config = UNetConfig(
        image_size=size,
        in_channels=stem.shape[1],
        out_channels=modules[-1]["weight"].shape[0],
        channels=width,
        channel_mult=tuple(int(mult) if mult == int(mult) else mult for mult in mults),
        num_res_blocks=len(blocks),
        attention_resolutions=tuple(size >> level for level in attends),
        dropout=0.1,
        resblock_updown=True,
        time_embedding="fourier" if has_fourier else "sin_cos",
        time_channels=embed["weight"].shape[1] if embed["weight"].shape[1] != width else None,
        stem_channels=width,
        skip_scale=math.sqrt(0.5),
        # The authors filter where they have a pyramid, and nowhere else.
        resample_filter=(1, 3, 3, 1) if has_pyramid else (1, 1),
        resample_projection=True,
        decoder_attention="last",
        input_pyramid=has_pyramid,
        min_group_channels=4,
    )
    return config, said


def from_score_sde(tensors: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The tensors of one of score_sde's networks under a `UNet`'s names.

    Raises:
        ValueError: they are those of another network.
    """
    modules = _modules(tensors)
    found: dict[str, Tensor] = {}
    kinds = list(_ours(config))
    theirs = [_kind(module) for module in modules]
    if theirs != [kind for kind, _, _ in kinds]:
        place = next((n for n, (a, b) in enumerate(itertools.zip_longest(theirs, (k[0] for k in kinds))) if a != b), 0)
        raise ValueError(f"its modules are not those of such a network: number {place} is another one")
    for (kind, name, parts), module in zip(kinds, modules, strict=True):
        if kind == "fourier":
            found[name] = module["W"]
        elif kind == "attention":
            q, k, v = (module[f"NIN_{n}.W"].T for n in range(3))
            found[f"{name}.qkv.weight"] = torch.cat([q, k, v])
            found[f"{name}.qkv.bias"] = torch.cat([module[f"NIN_{n}.b"] for n in range(3)])
            found[f"{name}.proj.weight"], found[f"{name}.proj.bias"] = module["NIN_3.W"].T, module["NIN_3.b"]
            for end in ("weight", "bias"):
                found[f"{name}.norm.{end}"] = module[f"GroupNorm_0.{end}"]
        else:
            for ours, part in parts.items():
                for end in ("weight", "bias"):
                    joined = ".".join(filter(None, (part, end)))
                    if joined not in module:
                        raise ValueError(f"{joined} of {name} is missing")
                    found[".".join(filter(None, (name, ours, end)))] = module[joined]
    return found


def to_score_sde(tensors: Mapping[str, Tensor], config: UNetConfig, diffusion: Diffusion, step: int) -> dict[str, Any]:
    """A checkpoint that score_sde's code restores; the inverse of `load_score_sde`.

    Args:
        tensors: `UNet(config).state_dict()`.
        config: The network's.
        diffusion: Its process.
        step: Training steps taken.

    Returns:
        Its contents. The weights stand there as trained ones and as their average; the optimizer has no moments.

    Raises:
        ValueError: score_sde has no such network or process; the message names what is in the way.
    """
    is_exploding = config.time_embedding == "fourier"
    expected = UNetConfig(
        time_embedding=config.time_embedding,
        resblock_updown=True,
        skip_scale=math.sqrt(0.5),
        resample_projection=True,
        decoder_attention="last",
        min_group_channels=4,
        resample_filter=(1, 3, 3, 1) if config.input_pyramid else (1, 1),
        input_pyramid=config.input_pyramid,
    )
    wrong = [name for name in _FIXED if getattr(config, name) != getattr(expected, name)]
    waves = 2 * config.channels if is_exploding else config.channels
    wrong += ["time_channels"] if config.waves != waves else []
    wrong += ["stem_channels"] if config.stem_width != config.channels else []
    wrong += ["time_embedding"] if config.time_embedding == "cos_sin" else []
    wrong += ["out_channels"] if config.out_channels != config.in_channels else []
    if wrong:
        raise ValueError(f"score_sde has no network with such {', '.join(wrong)}")
    levels = _levels(diffusion, is_exploding)
    own = {name: value.detach().cpu() for name, value in tensors.items()}
    modules: list[dict[str, Tensor]] = []
    for kind, name, parts in _ours(config):
        if kind == "fourier":
            modules.append({"W": own[name]})
        elif kind == "attention":
            found = {f"GroupNorm_0.{end}": own[f"{name}.norm.{end}"] for end in ("weight", "bias")}
            rows, biases = (
                reorder_qkv(own[f"{name}.qkv.{end}"], 1, config.qkv_layout, "separate").chunk(3)
                for end in ("weight", "bias")
            )
            for n in range(3):
                found |= {f"NIN_{n}.W": rows[n].T, f"NIN_{n}.b": biases[n]}
            modules.append(found | {"NIN_3.W": own[f"{name}.proj.weight"].T, "NIN_3.b": own[f"{name}.proj.bias"]})
        else:
            sign = -1 if name == "conv_out" and is_exploding else 1
            modules.append(
                {
                    ".".join(filter(None, (part, end))): sign * own[".".join(filter(None, (name, ours, end)))]
                    for ours, part in parts.items()
                    for end in ("weight", "bias")
                }
            )
    state = {
        f"module.all_modules.{n}.{name}": value.contiguous()
        for n, module in enumerate(modules)
        for name, value in module.items()
    }
    trained = [value for name, value in state.items() if not (name.endswith(".W") and value.ndim == 1)]
    optimizer = torch.optim.Adam([torch.nn.Parameter(value) for value in state.values()], lr=_LEARNING_RATE)
    average = {"decay": _EMA_DECAY, "num_updates": step, "shadow_params": trained}
    model = {"module.sigmas": levels, **state}
    return {"optimizer": optimizer.state_dict(), "model": model, "ema": average, "step": step}


def _levels(diffusion: Diffusion, is_exploding: bool) -> Tensor:
    """The buffer of levels, of data in [0, 1]; where the process is the one that a loaded file would have."""
    sigma = np.exp(-0.5 * diffusion.schedule.log_snr)
    ends = {"sigma_min": float(sigma[0]), "sigma_max": float(sigma[-1])}
    kind, settings = ("VEPrecond", ends) if is_exploding else ("VPPrecond", {})
    expected = diffusion_from_edm(kind, settings)[0]
    same = (diffusion.prediction, diffusion.variance, len(diffusion.schedule), diffusion.schedule.coordinates) == (
        expected.prediction, expected.variance, len(expected.schedule), expected.schedule.coordinates
    )  # fmt: skip
    for name in ("log_snr", "timesteps"):
        same = same and np.allclose(getattr(diffusion.schedule, name), getattr(expected.schedule, name), rtol=1e-9)
    if not same:
        raise ValueError(
            f"score_sde has no such process, {diffusion.schedule.name!r} with prediction {diffusion.prediction!r}"
        )
    low, high = (ends["sigma_min"] / 2, ends["sigma_max"] / 2) if is_exploding else (0.01, 50.0)
    return torch.from_numpy(np.exp(np.linspace(math.log(high), math.log(low), len(diffusion.schedule)))).float()


def _ours(config: UNetConfig) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The modules in their order: kind, our name, and our parts' names by theirs."""
    if config.time_embedding == "fourier":
        yield "fourier", "time_freqs", {}
    per_level = config.num_res_blocks + 1
    for module in network_modules(config):
        if module.kind == "res":
            yield "res", module.name, _RES | ({"skip": "Conv_2"} if module.has_skip else {})
        elif module.kind == "attention":
            yield "attention", module.name, {}
        else:
            yield module.kind, module.name, {"": ""}
        if module.part == "downsample" and config.input_pyramid:
            yield "pyramid", f"pyramid.{(module.level + 1) * per_level}", {"": "Conv2d_0"}


def _modules(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of each of `all_modules`, by the rest of their names."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", name)
        if match is None:
            raise ValueError(f"the tensor {name} is none of all_modules: it is another network of score_sde's")
        found.setdefault(int(match[1]), {})[match[2]] = value
    if sorted(found) != list(range(len(found))) or len(found) < 8:
        raise ValueError("modules are missing, or this is another network of score_sde's")
    return [found[n] for n in range(len(found))]


def _kind(module: Mapping[str, Tensor]) -> str:
    if "W" in module:
        return "fourier"
    if "NIN_3.W" in module:
        return "attention"
    if "Conv2d_0.weight" in module:
        return "pyramid"
    if "Dense_0.weight" in module:
        return "res"
    dims = module["weight"].ndim if "weight" in module else 0
    return {1: "norm", 2: "linear", 4: "conv"}.get(dims, "unknown")


def _resamples(module: Mapping[str, Tensor]) -> bool:
    """Whether a residual block has a convolution on its skip that the channels do not ask for."""
    rows, columns = module["Conv_0.weight"].shape[:2]
    return rows == columns and "Conv_2.weight" in module


def _averaged(tensors: Mapping[str, Tensor], shadows: Any) -> dict[str, Tensor]:
    """The trained parameters replaced by their average, which stands in their order."""
    names = [name for name, value in tensors.items() if not (name.endswith(".W") and value.ndim == 1)]
    fits = isinstance(shadows, list | tuple) and len(shadows) == len(names)
    if not fits or any(
        not isinstance(value, Tensor) or value.shape != tensors[name].shape
        for name, value in zip(names, shadows, strict=True)
    ):
        raise ValueError("its average does not fit its network: take weights='raw'")
    return {**tensors, **dict(zip(names, shadows, strict=True))}


def _process(is_exploding: bool, sigmas: Tensor | None) -> Diffusion:
    if not is_exploding:
        return diffusion_from_edm("VPPrecond", {"beta_d": 19.9, "beta_min": 0.1})[0]
    if sigmas is None or sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas > 0).all():
        raise ValueError("it has no levels (sigmas): give diffusion=")
    # The authors' numbers, which float32 has rounded.
    low, high = (2 * float(f"{float(value):.6g}") for value in (sigmas.min(), sigmas.max()))
    return diffusion_from_edm("VEPrecond", {"sigma_min": low, "sigma_max": high})[0]
