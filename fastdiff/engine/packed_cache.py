"""Packed weights kept in a folder, so that another process need not pack them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.engine import memory
from fastdiff.engine.plan import Plan
from fastdiff.version import __version__

__all__ = ["VARIABLE", "chosen_folder", "load", "name_of", "save"]

VARIABLE = "FASTDIFF_PACKED_CACHE"
"""The environment variable that names the folder where none is given."""

# A file is this, the sum of its numbers as int64, how many they are as int64, and the numbers as float32.
_MAGIC = b"fastdiff packed weights 1\n".ljust(48, b"\0")
_HEADER_BYTES = len(_MAGIC) + 16


def chosen_folder(folder: str | Path | None) -> Path | None:
    """The folder that was given, or that the environment names; None for neither."""
    if folder is not None:
        return Path(folder)
    named = os.environ.get(VARIABLE, "")
    return Path(named) if named else None


def name_of(plan: Plan, layers: Sequence[tuple[Tensor, Tensor]]) -> str:
    """The name of a network's file: of its weights, of what each is packed for, and of this version.

    All instruction sets read the same packed weights.
    """
    packed_for = [
        (i.op, i.algorithm, i.products, i.kernel, i.eps, list(weight.shape), list(bias.shape), *i.factors)
        for i, (weight, bias) in zip((i for i in plan.instructions if i.parameter), layers, strict=True)
    ]
    digest = hashlib.sha256(json.dumps([__version__, packed_for]).encode())
    for part in (part for layer in layers for part in layer):
        digest.update(_bytes_of(part.detach().contiguous()))
    return f"{digest.hexdigest()}.packed"


def load(path: Path, count: int) -> Tensor | None:
    """What `save` wrote, `count` numbers; None where there is no such file, or it is damaged."""
    packed = memory.empty(count)
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            if file.readinto(_bytes_of(packed)) != 4 * count or file.read(1):
                return None
    except OSError:
        return None
    return packed if header == _header(packed) else None


def save(path: Path, packed: Tensor) -> None:
    """Write packed weights, whole or not at all; a folder that cannot be written to raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_header(packed))
            file.write(_bytes_of(packed))
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _bytes_of(values: Tensor) -> memoryview:
    return values.reshape(-1).view(torch.uint8).numpy().data


def _header(packed: Tensor) -> bytes:
    # It wraps around. Two numbers at a time, which is faster; packed tensors are whole cache lines.
    total = int(packed.view(torch.int64).sum())
    return _MAGIC + struct.pack("<qq", total, packed.numel())
