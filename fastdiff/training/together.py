"""Whether processes may train together: what each of them is to do, and with what code."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastdiff.files.checkpoint import versions
from fastdiff.process.arguments import spelt
from fastdiff.training.config import TrainConfig
from fastdiff.training.world import World

__all__ = ["check_share", "in_common"]

# The same data may lie elsewhere on another machine.
_OWN = ("data.source", "data.classes")
# Characters of a value; of a longer one there is a digest.
_LONGEST = 80


def check_share(config: TrainConfig, world: World) -> None:
    """Whether the images of a step can be shared out.

    Raises:
        ValueError: the number of processes does not divide the batch; the nearest that it divides are named.
    """
    size, batch = world.size, config.batch_size
    if batch % size:
        below, above = batch // size * size, (batch // size + 1) * size
        near = f"{below} and {above} are the nearest that can" if below else f"{above} is the nearest that can"
        raise ValueError(f"{spelt('batch_size')} {batch} cannot be shared out among {size} processes: {near}")


def in_common(described: dict[str, Any], device: torch.device) -> dict[str, str]:
    """What must be the same at all processes, by what it is called.

    Args:
        described: What is trained, as plain values by section.
        device: What it is trained on.
    """
    own = versions()
    found = {"fastdiff's version": own["fastdiff"], "fastdiff's code": _code(), "PyTorch": own["torch"]}
    found["the kind of device"] = device.type
    if device.type == "cpu":
        # Weights would drift apart.
        found["the instruction set (FASTDIFF_CPU_ISA, ATEN_CPU_CAPABILITY)"] = own["instructions"]
    for section, values in described.items():
        for key, value in values.items():
            if f"{section}.{key}" not in _OWN:
                text = json.dumps(value, sort_keys=True)
                found[f"{section}.{key}"] = text if len(text) <= _LONGEST else _digest(text.encode())
    return found


@cache
def _code() -> str:
    """A digest of the sources."""
    root = Path(__file__).parents[1]
    return _digest(b"".join(path.read_bytes() for path in sorted(root.rglob("*.py"))))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
