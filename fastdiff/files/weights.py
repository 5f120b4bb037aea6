"""Which weights a model folder holds, and the safetensors files that they are in."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError, safe_open

from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import shown

__all__ = [
    "AVERAGES_FILE",
    "MODEL_FILE",
    "RAW_PREFIX",
    "TRAINING_FILE",
    "WeightKind",
    "average_prefix",
    "check_file",
    "opened",
    "reason_of",
    "weights_file",
]

WeightKind = Literal["ema", "raw"]

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"
AVERAGES_FILE = "averages.safetensors"
RAW_PREFIX = "raw."


def average_prefix(kind: str, value: float) -> str:
    """Of the names of an average's tensors in a file of several: "ema:0.999/" for the kind "ema" and a decay."""
    return f"{kind}:{value!r}/"


def weights_file(folder: Path, config: dict[str, Any], weights: str | None) -> tuple[Path, str, WeightKind, str | None]:
    """The file with the weights asked for.

    Args:
        folder: Of a model or a checkpoint.
        config: The contents of its `config.json`.
        weights: See `fastdiff.files.checkpoint.load_model`.

    Returns:
        The file, the prefix of the weights' names in it, what they are, and which average: "ema:0.999".

    Raises:
        ValueError: they are not there.
    """
    has: WeightKind = config["weights"]
    if weights is None or weights == has:
        return folder / MODEL_FILE, "", has, None
    if weights == "raw" and (folder / TRAINING_FILE).is_file():
        return folder / TRAINING_FILE, RAW_PREFIX, "raw", None
    kinds = get_args(WeightKind)
    if weights in kinds:
        raise ValueError(
            f"{folder} holds {has!r} weights only, got {advised('weights', weights)}; leave it out to take what is "
            "there"
        )
    wanted = _average_name(weights)
    if wanted is None:
        raise ValueError(
            f"{spelt('weights')} must be 'ema', 'raw' or None, or an average such as 'ema:0.999' or 'power:0.05', got "
            f"{shown(weights)}"
        )
    averages = _averages_of(folder, config)
    if wanted not in averages:
        known = ", ".join([*averages, *(["raw"] if (folder / TRAINING_FILE).is_file() else [])])
        raise ValueError(f"{folder} has no average {wanted}, got {advised('weights', weights)}; it has {known or has}")
    return *averages[wanted], "ema", wanted


def _average_name(weights: str) -> str | None:
    """ "ema:0.999" from any way to write the number; None for what names no average."""
    kind, _, number = weights.partition(":")
    with contextlib.suppress(ValueError):
        if kind in ("ema", "power"):
            return f"{kind}:{float(number)!r}"
    return None


def _averages_of(folder: Path, config: dict[str, Any]) -> dict[str, tuple[Path, str]]:
    """The file of each average of a checkpoint, and the prefix of its tensors' names in it."""
    found: dict[str, tuple[Path, str]] = {}
    decays = (config["training"] or {}).get("ema_decay")
    first = decays[0] if isinstance(decays, list) and decays else decays
    if config["weights"] == "ema" and isinstance(first, int | float):
        found[f"ema:{float(first)!r}"] = folder / MODEL_FILE, ""
    if (folder / AVERAGES_FILE).is_file():
        with opened(folder / AVERAGES_FILE) as file:
            names = {name.partition("/")[0] for name in file.keys()}  # noqa: SIM118
        found |= {name: (folder / AVERAGES_FILE, f"{name}/") for name in sorted(names)}
    return found


def check_file(path: Path) -> None:
    """Raise ValueError for what is there and is no file."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: a folder, a pipe or a device is not read")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, whose header is held to its length.

    Raises:
        ValueError: it is missing, damaged or cut short.
    """
    check_file(path)
    try:
        file = safe_open(path, framework="pt")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {reason_of(error)}") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    with file as tensors:
        yield tensors


def reason_of(error: BaseException) -> str:
    """What the system said, without the wrapping of Python or of safetensors."""
    text = str(getattr(error, "strerror", None) or error)
    match = re.search(r"I/O error: (.+) \(os error \d+\)", text)
    return match[1] if match else text
