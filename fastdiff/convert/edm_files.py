"""NVlabs' .pkl files of EDM: a network with its preconditioning, read as plain data and made here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.convert.diffusers_unet import build_unet
from fastdiff.convert.edm import from_edm, unet_config_from_edm
from fastdiff.convert.inert import Record, Refused, read_pickle
from fastdiff.files.checkpoint import LoadedModel
from fastdiff.files.contents import check_room, describing
from fastdiff.files.data import DataScaling
from fastdiff.process.checks import check_keys, shown
from fastdiff.process.coordinates import Coordinates
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule

__all__ = ["diffusion_from_edm", "load_edm", "read_edm"]

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_MAX_MODULES = 20_000
_TOO_MANY = f"it has more than {_MAX_MODULES:,} modules, or modules within one another without end"
# Settings of the preconditionings beside those of the network, and what they are where a file does not say.
_PRECONDITIONINGS: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5, "model_type": "DhariwalUNet"},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "model_type": "SongUNet"},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100, "model_type": "SongUNet"},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "model_type": "DhariwalUNet"},
}
_OF_BOTH = {"img_resolution": 32, "img_channels": 3, "label_dim": 0, "use_fp16": False}
# Of EDM's sampler, where the network has no bounds of its own (generate.py).
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0
_NUM_TIMESTEPS = 1000


def load_edm(
    path: Path, *, device: torch.device | str, weights: str | None, diffusion: Diffusion | None
) -> LoadedModel:
    """A model from a .pkl file of EDM's code, which is read as data: none of the code in it runs.

    Args:
        path: The file.
        device: Where the network goes.
        weights: "ema" or None: such files hold the average alone.
        diffusion: The process, in the place of the file's.

    Raises:
        ValueError: the file is refused, damaged or holds another network; `weights` is "raw".
    """
    if weights == "raw":
        raise ValueError(f"{path} holds the average of a training alone ('ema'), got weights='raw'")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        kind, settings, tensors = read_edm(data)
    except Refused as error:
        raise ValueError(f"{path} is refused: {error}") from error
    with describing(path):
        process, network, given = diffusion_from_edm(kind, settings)
        config = unet_config_from_edm(network, given)
        check_room(config, len(tensors))
        fitted = from_edm(tensors, config)
        if kind == "VEPrecond":
            # Their network's output is minus the noise.
            for end in ("weight", "bias"):
                fitted[f"conv_out.{end}"] = -fitted[f"conv_out.{end}"]
        unet = build_unet(config, {name: value.float() for name, value in fitted.items()}, device=device)
    said: dict[str, str] = {} if diffusion is None else {"diffusion": "diffusion="}
    metadata: dict[str, Any] = {"path": str(path), "format": "edm", "weights": "ema", "said": said}
    metadata |= {"step": None, "training": None, "data": None, "versions": None}
    return LoadedModel(unet, diffusion or process, DataScaling(), metadata)


def read_edm(data: bytes) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """What a .pkl file says: the class of its preconditioning, its settings, and the network's tensors by name.

    Raises:
        Refused: it is no plain description of such a network.
    """
    content = read_pickle(data)
    if isinstance(content, dict):
        content = content.get("ema", content.get("net"))
    kind, state = _persistent(content)
    if kind not in _PRECONDITIONINGS:
        raise Refused(f"it holds a {shown(kind)}, and known are {', '.join(_PRECONDITIONINGS)}")
    settings = state.get("_init_kwargs")
    if not isinstance(settings, dict) or state.get("_init_args") not in ((), []):
        raise Refused("it does not say the settings of its network by name")
    model = (state.get("_modules") or {}).get("model") if isinstance(state.get("_modules"), dict) else None
    tensors = _tensors_of(model)
    # Tensors may share memory, and a small file could describe a network of any size.
    if sum(value.numel() * value.element_size() for value in tensors.values()) > len(data):
        raise Refused("its tensors are larger than the file")
    return kind, {str(name): _plain(name, value) for name, value in settings.items()}, tensors


def diffusion_from_edm(kind: str, settings: Mapping[str, Any]) -> tuple[Diffusion, str, dict[str, Any]]:
    """The process of a preconditioned network, the class of the network within, and the settings of that.

    Args:
        kind: Class of the preconditioning: "EDMPrecond", "VPPrecond", "VEPrecond" or "iDDPMPrecond".
        settings: Arguments of its constructor.

    Raises:
        ValueError: a setting is out of range or no number.

    Source: Karras et al. (2022), arXiv:2206.00364, table 1.
    """
    given = _OF_BOTH | _PRECONDITIONINGS[kind] | dict(settings)
    own = {name: given.pop(name) for name in _PRECONDITIONINGS[kind]}
    network = own.pop("model_type")
    channels = given.pop("img_channels")
    given.pop("use_fp16")
    given |= {"in_channels": channels, "out_channels": 2 * channels if kind == "iDDPMPrecond" else channels}
    check_keys({name: own[name] for name in own}, list(_PRECONDITIONINGS[kind]), kind)
    for name, value in own.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{name} must be a number from 0 up, got {shown(value)}")
    if not 1 <= own.get("M", 1) <= 100_000 or own.get("M", 1) != int(own.get("M", 1)):
        raise ValueError(f"M must be a whole number in [1, 100000], got {shown(own['M'])}")
    if kind == "EDMPrecond":
        low, high = max(_SIGMA_MIN, own["sigma_min"]), min(_SIGMA_MAX, own["sigma_max"])
        schedule = NoiseSchedule.edm(_NUM_TIMESTEPS, low, high)
        return Diffusion(schedule, "F", sigma_data=own["sigma_data"]), network, given
    if kind == "VEPrecond":
        log_sigma = np.linspace(math.log(own["sigma_min"]), math.log(own["sigma_max"]), _NUM_TIMESTEPS)
        seen = Coordinates("exploding", "log_sigma", 1.0, math.log(0.5))
        return Diffusion(NoiseSchedule.from_log_snr(-2 * log_sigma, seen), "eps"), network, given
    if kind == "iDDPMPrecond":
        schedule = NoiseSchedule.cosine(int(own["M"]), own["C_2"], 1 - own["C_1"])
        return Diffusion(schedule, "eps", "learned_range"), network, given
    time = np.arange(1, own["M"] + 1) / own["M"]
    log_abar = -(0.5 * own["beta_d"] * time**2 + own["beta_min"] * time)
    betas = -np.expm1(np.diff(log_abar, prepend=0.0))
    return Diffusion(NoiseSchedule(betas, (own["M"] - 1) * time), "eps"), network, given


def _persistent(value: Any) -> tuple[str, dict[str, Any]]:
    """Class and state of an object that `torch_utils.persistence` described."""
    meta = value.args[0] if isinstance(value, Record) and value.name == _PERSISTENT and len(value.args) == 1 else None
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Refused("it does not hold a network as EDM's training writes it, under 'ema'")
    kind, state = meta.get("class_name"), meta.get("state")
    if not isinstance(kind, str) or not isinstance(state, dict):
        raise Refused("it does not say the class and the state of its network")
    return kind, state


def _tensors_of(model: Any) -> dict[str, Tensor]:
    """Parameters and buffers of a module and those in it, by name."""
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", model)]
    for _ in range(_MAX_MODULES):
        if not waiting:
            return found
        prefix, module = waiting.pop()
        if module is None:
            continue
        if not isinstance(module, Record):
            raise Refused("its modules are not described as PyTorch's")
        state = _persistent(module)[1] if module.name == _PERSISTENT else module.state
        for part in ("_parameters", "_buffers", "_modules"):
            values = state.get(part, {})
            if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
                raise Refused("its modules are not described as PyTorch's")
            if part == "_modules":
                if len(prefix) > 200 or len(waiting) + len(values) > _MAX_MODULES:
                    raise Refused(_TOO_MANY)
                waiting += [(f"{prefix}{name}.", child) for name, child in values.items()]
                continue
            for name, value in values.items():
                if value is not None and not isinstance(value, Tensor):
                    raise Refused("its modules hold parameters that are no tensors")
                if value is not None:
                    found[f"{prefix}{name}"] = value
    raise Refused(_TOO_MANY)


def _plain(name: Any, value: Any) -> Any:
    """A setting, which is a number, a text or a short list of such."""
    parts = value if isinstance(value, list | tuple) and len(value) <= 16 else [value]
    if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
        raise Refused(f"its setting {shown(str(name)[:80])} is neither a number nor a text nor a short list of them")
    return value
