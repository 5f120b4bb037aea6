"""Reading other projects' files without running anything that hides in them."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fastdiff.files.contents import checksum_of_tensors

__all__ = ["CHECKSUM_KEY", "is_optimizer_state", "read_json", "read_tensors"]

# Where a safetensors file that `convert` wrote says the checksum of its tensors.
CHECKSUM_KEY = "fastdiff_checksum"
_OPTIMIZER_NAME = re.compile(r"(opt|optim|optimizer)[_-]?\d*\.(pt|pth|bin|ckpt|safetensors)", re.IGNORECASE)


def read_tensors(path: Path, *, optimizers: bool = False) -> Any:
    """The contents of a weights file: a .safetensors, or whatever plain data `torch.save` wrote.

    Args:
        path: The file. Anything but .safetensors is opened with `torch.load(weights_only=True)`.
        optimizers: Whether the state of an optimizer is wanted too.

    Returns:
        Tensors by name, or nested dicts and lists of tensors and plain values, on the CPU.

    Raises:
        ValueError: it holds an optimizer, is truncated or damaged, holds anything but tensors and plain values (such
            a file could run code, so it is refused), or does not exist.
    """
    if not optimizers and _OPTIMIZER_NAME.fullmatch(path.name):
        raise ValueError(
            f"{path} is the state of an optimizer, by its name: give the weights written beside it, such as model*.pt "
            "or ema_*.pt"
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: a folder, a pipe or a device is not read")
    try:
        if path.suffix == ".safetensors":
            content, expected = _read_safetensors(path)
        else:
            content, expected = torch.load(path, map_location="cpu", weights_only=True), None
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ValueError(
            f"{path} is refused: it is not a file of tensors and plain values{what}, and opening it could run code; "
            "save the state dict alone, with torch.save or safetensors, where you trust it"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    # The unpickler meets bytes that are no pickle with what comes to hand.
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{path} is truncated or damaged, or no file of weights: "
            f"{str(error).splitlines()[0] if str(error) else error!r}"
        ) from (error)
    _check_tensors(path, content, expected)
    if not optimizers and is_optimizer_state(content):
        raise ValueError(
            f"{path} holds the state of an optimizer (its keys are state and param_groups), not a network: give the "
            "weights written beside it"
        )
    return content


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and what the file says their checksum is."""
    with safe_open(path, framework="pt") as file:
        return load_file(path), (file.metadata() or {}).get(CHECKSUM_KEY)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: str | None) -> None:
    if expected is not None and (found := checksum_of_tensors(tensors)) != expected:
        raise ValueError(
            f"{path} is damaged: the checksum of its tensors is {found}, and it says {expected}; take another copy"
        )


def is_optimizer_state(content: Any) -> bool:
    """Whether an object is what `optimizer.state_dict()` gives."""
    return isinstance(content, Mapping) and {"state", "param_groups"} <= set(content)


def is_state_dict(content: Any) -> bool:
    """Whether an object maps names to tensors, and nothing else."""
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it is missing, not JSON, or something else than an object.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: a folder, a pipe or a device is not read")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, perhaps cut short: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
