"""Models and training checkpoints on disk: JSON and safetensors, never pickle.

A model folder holds `config.json` (the network, the process, the scaling of the data, what the weights are) and
`model.safetensors`, the weights one samples with. A run folder holds `checkpoints/step_00001000/` and so on: model
folders that hold `training.safetensors` as well, from which training goes on, and `averages.safetensors` where a
training keeps more averages than one.

`config.json` has a checksum of each of these files. Loading compares it, at the cost of reading the file once more:
about 0.15 s for the 143 MB of Ho's network, 0.6 s for a checkpoint of its training.

A folder is written under another name beside its place, synced to the disk, and renamed; older checkpoints go only
after that. Whatever happens in between, a full disk or a kill, the checkpoints before it stay whole.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastdiff.files.atomic import atomic_folder, delete_folder, remove_stale
from fastdiff.files.contents import check_data, check_room, check_sum, checksum, describing
from fastdiff.files.data import DataScaling
from fastdiff.files.weights import (
    AVERAGES_FILE,
    MODEL_FILE,
    RAW_PREFIX,
    TRAINING_FILE,
    WeightKind,
    check_file,
    opened,
    reason_of,
    weights_file,
)
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.unet import UNet
from fastdiff.nets.wrapped import own_tensors, plain_names, plain_network
from fastdiff.ops._dispatch import has_extension
from fastdiff.process.checks import check_keys, shown, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.version import __version__

__all__ = [
    "AVERAGES_FILE",
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "MODEL_FILE",
    "RAW_PREFIX",
    "TRAINING_FILE",
    "DescribedModel",
    "LoadedModel",
    "WeightKind",
    "latest_checkpoint",
    "list_checkpoints",
    "load_model",
    "load_tensors",
    "read_config",
    "save_checkpoint",
    "save_described",
    "save_model",
    "versions",
]

FORMAT = "fastdiff"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"

_KEYS = ("format", "format_version", "unet", "diffusion", "scaling", "weights", "step", "training", "data", "versions")
# Models of earlier releases have none.
_CHECKSUMS = "checksums"
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_MAX_LISTED = 5


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What `load_model` gives.

    Attributes:
        unet: In evaluation mode.
        diffusion: What it was trained on.
        scaling: How its data's values map to [-1, 1].
        metadata: "path", "weights" (which were loaded), "step", "training" and "data" (None outside of training) and
            "versions". "training" has "average" where it is another average than the first.
    """

    unet: UNet
    diffusion: Diffusion
    scaling: DataScaling
    metadata: dict[str, Any]


class DescribedModel(Protocol):
    """A network with all that is known of it, as `LoadedModel` and `fastdiff.Pipeline` are."""

    unet: UNet
    diffusion: Diffusion
    scaling: DataScaling
    metadata: dict[str, Any]


def save_described(folder: str | Path, model: DescribedModel) -> Path:
    """Write a model folder with what the metadata say; see `save_model`."""
    known = model.metadata
    return save_model(
        folder,
        model.unet,
        model.diffusion,
        model.scaling,
        weights="ema" if known.get("weights") == "ema" else "raw",
        step=known.get("step") or 0,
        training=known.get("training"),
        data=known.get("data"),
    )


def save_model(
    folder: str | Path,
    unet: UNet,
    diffusion: Diffusion,
    scaling: DataScaling,
    *,
    weights: WeightKind = "raw",
    step: int = 0,
    tensors: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    training_tensors: Mapping[str, Tensor] | None = None,
    averages: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model folder, all of it or nothing.

    Args:
        folder: Must not exist, or be empty; nothing is overwritten.
        unet: The network; wrappers of PyTorch's are taken off.
        diffusion: What it was trained on.
        scaling: Of its data.
        weights: What the weights are: an average ("ema") or those that were trained ("raw").
        step: Training steps taken.
        tensors: Weights to write in place of the network's own, by the same names.
        training: Settings of the training, for JSON.
        data: A description of the data, for JSON.
        training_tensors: Contents of `training.safetensors`; None for no such file.
        averages: Contents of `averages.safetensors`; None or nothing for no such file.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something, `tensors` are not the network's, or its own are not those of its
            configuration.
        RuntimeError: it could not be written; nothing of it is left behind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and nothing is overwritten: choose another name")
    if weights not in get_args(WeightKind):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    unet = cast(UNet, plain_network(unet))
    own = own_tensors(unet)
    tensors = own if tensors is None else tensors
    _check_fit("the given tensors", own, {name: list(value.shape) for name, value in tensors.items()})
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "unet": unet.config.to_dict(),
        "diffusion": diffusion.to_dict(),
        "scaling": scaling.to_dict(),
        "weights": weights,
        "step": step,
        "training": None if training is None else dict(training),
        "data": None if data is None else dict(data),
        "versions": versions(),
    }
    files = {MODEL_FILE: tensors}
    if training_tensors is not None:
        files[TRAINING_FILE] = training_tensors
    if averages:
        files[AVERAGES_FILE] = averages
    try:
        _write_folder(folder, config, files)
    except (OSError, SafetensorError) as error:
        raise RuntimeError(f"could not save the model to {folder}: {reason_of(error)}") from error
    return folder


def save_checkpoint(
    run_folder: str | Path,
    unet: UNet,
    diffusion: Diffusion,
    scaling: DataScaling,
    *,
    step: int,
    ema: Mapping[str, Tensor],
    training: Mapping[str, Any],
    data: Mapping[str, Any],
    training_tensors: Mapping[str, Tensor],
    averages: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write `checkpoints/step_XXXXXXXX` of a run folder, then delete older checkpoints.

    One process at a time may write to a run folder. A complete checkpoint of that step is left as it is.

    Args:
        run_folder: Made where it does not exist.
        unet: The network; its configuration is written, its weights are those in `ema` and `training_tensors`.
        diffusion: What it is trained on.
        scaling: Of the data.
        step: Training steps taken, in [0, 10^8).
        ema: The averaged weights, for `model.safetensors`.
        training: Settings of the training.
        data: A description of the data.
        training_tensors: What training needs to go on; the trained weights under "raw." and their names.
        averages: Further averages, each under a prefix (`fastdiff.files.snapshots.average_prefix`) and their names.
        keep: Checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        RuntimeError: it could not be written. The message names the checkpoint that is left.
    """
    folder = Path(run_folder) / CHECKPOINTS / f"step_{step:08d}"
    if _fault(folder) is None:
        return folder
    try:
        remove_stale(folder.parent, "step_*")
        if folder.exists():
            delete_folder(folder)
        save_model(
            folder,
            unet,
            diffusion,
            scaling,
            weights="ema",
            step=step,
            tensors=ema,
            training=training,
            data=data,
            training_tensors=training_tensors,
            averages=averages,
        )
    except (OSError, RuntimeError) as error:
        reason = reason_of(error.__cause__ or error)
        previous = latest_checkpoint(run_folder)
        left = f"the previous checkpoint {previous} is intact" if previous else "there is no earlier checkpoint"
        raise RuntimeError(f"could not save checkpoint to {folder}: {reason}; {left}") from error
    older = [path for number, path in list_checkpoints(run_folder) if number < step]
    for path in older[: max(0, len(older) - (keep - 1))]:
        try:
            delete_folder(path)
        except OSError as error:
            warnings.warn(f"could not delete the old checkpoint {path}: {reason_of(error)}", stacklevel=2)
    return folder


def load_model(path: str | Path, *, device: torch.device | str = "cpu", weights: str | None = None) -> LoadedModel:
    """Read a model folder, or the newest complete checkpoint of a run folder.

    Args:
        path: The folder.
        device: Where the network goes.
        weights: "ema" or "raw", which must be there. None takes `model.safetensors`, whichever of them it holds: the
            average, in a checkpoint. Checkpoints have both. Where a training kept several averages, "ema:0.999" is the
            one of that decay, and "power:0.05" the power-function average of that width.

    Returns:
        The network, in float32 and in evaluation mode, with all that is needed to sample from it.

    Raises:
        ValueError: the path does not exist or is not ours, a file is missing, damaged or of another format version,
            the weights do not fit the configuration, or `weights` are not there.
    """
    folder = _model_folder(Path(path))
    config = read_config(folder)
    file, prefix, kind, average = weights_file(folder, config, weights)
    where = folder / CONFIG_FILE
    with describing(where, "unet"):
        unet_config = UNetConfig.from_dict(config["unet"])
    with describing(where, "diffusion"):
        diffusion = Diffusion.from_dict(config["diffusion"])
    with describing(where, "scaling"):
        scaling = DataScaling.from_dict(config["scaling"])
    shapes = _shapes(file, prefix)
    with describing(where, "unet"):
        check_room(unet_config, len(shapes))
        # On the meta device nothing is initialised: the caller's random state stays as it is.
        with torch.device("meta"):
            unet = UNet(unet_config)
    # Before there is room for the network, which a damaged configuration may make enormous.
    _check_fit(str(file), unet.state_dict(), shapes)
    check_sum(file, config[_CHECKSUMS].get(file.name), said_by=where)
    unet.to_empty(device=device)
    load_tensors(file, unet.state_dict(), prefix=prefix)
    metadata: dict[str, Any] = {"path": str(folder), "weights": kind}
    metadata |= {key: config[key] for key in ("step", "training", "data", "versions")}
    if average is not None:
        metadata["training"] = metadata["training"] | {"average": average}
    return LoadedModel(unet.eval(), diffusion, scaling, metadata)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The contents of a model folder's `config.json`, checked for format, version and keys.

    Raises:
        ValueError: the file is missing, not JSON, not ours, of another version, or has unknown or missing keys.
    """
    path = Path(folder) / CONFIG_FILE
    check_file(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, perhaps cut short: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f'{path} was not written by fastdiff: it has no "format": "{FORMAT}"')
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}, and this fastdiff reads version {FORMAT_VERSION}: "
            "use the fastdiff that wrote it, or a newer one"
        )
    with describing(path):
        check_keys(config, [*_KEYS, _CHECKSUMS], "the configuration of a model")
        missing = [key for key in _KEYS if key not in config]
        if missing:
            raise ValueError(f"missing keys: {', '.join(missing)}")
        if config["weights"] not in get_args(WeightKind):
            raise ValueError(f"weights must be 'ema' or 'raw', got {config['weights']!r}")
        whole_number("step", config["step"], low=0, strict=True)
        check_data(config["data"])
        for key in ("training", "versions"):
            if not isinstance(config[key], dict | None):
                raise ValueError(f"{key} must be an object or null, got {shown(config[key])}")
        if not isinstance(config.setdefault(_CHECKSUMS, {}), dict):
            raise ValueError(f"{_CHECKSUMS} must be an object, got {shown(config[_CHECKSUMS])}")
    return config


@torch.no_grad()
def load_tensors(path: str | Path, targets: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Copy a safetensors file into existing tensors, which keep their types, layouts and devices.

    Args:
        path: The file.
        targets: Tensors by name; the file must hold exactly these, with these shapes.
        prefix: Of the names in the file; others are left alone. "module." and "_orig_mod." are taken out of them.

    Raises:
        ValueError: the file is missing, damaged or truncated, or names or shapes differ; the first few are listed.
    """
    _check_fit(str(path), targets, _shapes(Path(path), prefix))
    with opened(Path(path)) as file:
        stored = _stored_names(file, prefix)
        for name, target in targets.items():
            target.copy_(file.get_tensor(stored[name]))


def _stored_names(file: Any, prefix: str) -> dict[str, str]:
    """Of the tensors whose names start with the prefix: by the rest of the name, what the file calls them."""
    names = plain_names({name: name for name in file.keys() if name.startswith(prefix)})  # noqa: SIM118
    return {name.removeprefix(prefix): stored for name, stored in names.items()}


def _shapes(path: Path, prefix: str) -> dict[str, list[int]]:
    """Of the tensors in a file whose names start with the prefix, by the rest of the name."""
    with opened(path) as file:
        return {name: file.get_slice(stored).get_shape() for name, stored in _stored_names(file, prefix).items()}


def list_checkpoints(run_folder: str | Path) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint of a run, complete or not, oldest first."""
    found = []
    for path in Path(run_folder, CHECKPOINTS).glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)


def latest_checkpoint(run_folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None.

    A checkpoint is complete unless something outside of fastdiff damaged it. One that is not is passed over with a
    warning.
    """
    for _, path in reversed(list_checkpoints(run_folder)):
        fault = _fault(path)
        if fault is None:
            return path
        warnings.warn(f"passing over an incomplete checkpoint: {fault}", stacklevel=2)
    return None


def _fault(folder: Path) -> str | None:
    """What keeps a checkpoint from being loaded, by its configuration, the files' headers, lengths and checksums."""
    try:
        config = read_config(folder)
        sums = config[_CHECKSUMS]
        for name in (MODEL_FILE, TRAINING_FILE, *([AVERAGES_FILE] if AVERAGES_FILE in sums else [])):
            with opened(folder / name):
                pass
            check_sum(folder / name, sums.get(name), said_by=folder / CONFIG_FILE)
    except ValueError as error:
        return str(error)
    return None


def _model_folder(path: Path) -> Path:
    if not path.exists():
        hint = f"; for a model of the Hugging Face hub write hf://{path}" if len(path.parts) == 2 else ""
        raise ValueError(f"{path} does not exist{hint}")
    if path.is_file():
        if path.suffix in _PICKLES:
            raise ValueError(
                f"{path} is not a model folder, and only safetensors are read here: opening a {path.suffix} file can "
                "run code that is hidden in it; convert it first"
            )
        raise ValueError(f"{path} is a file; give the folder that holds {CONFIG_FILE} and {MODEL_FILE}")
    if (path / CONFIG_FILE).is_file():
        return path
    if (path / CHECKPOINTS).is_dir():
        newest = latest_checkpoint(path)
        if newest is None:
            raise ValueError(f"the training run {path} has no complete checkpoint yet")
        return newest
    if not path.is_dir():
        raise ValueError(f"{path} is neither a folder nor a file: a pipe or a device is not read")
    message = f"{path} is not a fastdiff model folder: {CONFIG_FILE} is missing"
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        message += f"; it holds {pickles[0]}, but only safetensors are read here: convert it first"
    raise ValueError(message)


def _check_fit(what: str, targets: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> None:
    wrong = [f"{name} is missing" for name in targets if name not in shapes]
    wrong += [f"{name} is not of this network" for name in shapes if name not in targets]
    wrong += [
        f"{name} is {shapes[name]} where {list(target.shape)} is expected"
        for name, target in targets.items()
        if name in shapes and list(shapes[name]) != list(target.shape)
    ]
    if wrong:
        more = f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ValueError(f"{what} does not fit the configuration: {'; '.join(wrong[:_MAX_LISTED])}{more}")


def versions() -> dict[str, str]:
    """What a checkpoint says of the process that wrote it: all that its last bits may depend on, on the CPU."""
    # Products of bfloat16 numbers are for sampling alone.
    instructions = import_module("fastdiff._C").cpu_isa() if has_extension() else "none"
    instructions = "avx512" if instructions.startswith("avx512") else instructions
    return {
        "fastdiff": __version__,
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
        "instructions": instructions,
        # Masks of dropout; checkpoints that do not say it drew them for a whole batch.
        "dropout": "by image",
    }


def _write_folder(folder: Path, config: dict[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a folder whole or not at all."""
    with atomic_folder(folder) as partial:
        described = partial / CONFIG_FILE
        described.touch()
        # safetensors makes files that only their owner may read.
        mode = described.stat().st_mode & 0o777
        for name, tensors in files.items():
            path = partial / name
            # With more than one entry, the order of the metadata, and so the file, would change from run to run.
            save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path, {"format": "pt"})
            path.chmod(mode)
            with opened(path) as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            _check_fit(f"{name} as written", tensors, shapes)
        config = config | {_CHECKSUMS: {name: checksum(partial / name) for name in files}}
        # One key per line: the betas of a schedule that has no name would fill a thousand.
        lines = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in config.items()
        )
        described.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
