"""What the files of a model must hold: types, sizes that fit, and the bytes that were written."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.nets.config import UNetConfig
from fastdiff.process.checks import shown

__all__ = ["check_data", "check_room", "check_sum", "checksum", "checksum_of_tensors", "describing"]

_CHUNK = 1 << 20
# What numbers, lists and names in the place of one another raise somewhere below.
_FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


@contextlib.contextmanager
def describing(path: Path, key: str | None = None) -> Iterator[None]:
    """Say in which file, and under which key of its JSON, the contents are wrong.

    Raises:
        ValueError: for whatever was raised inside for a value of a wrong type or size.
    """
    try:
        yield
    except _FAULTS as error:
        text = str(error) or type(error).__name__
        if isinstance(error, LookupError):
            text = f"{text} is not there"
        raise ValueError(f"{path}: {text.splitlines()[0]}{'' if key is None else f' (under {key!r})'}") from error


def checksum(path: Path) -> str:
    """The CRC-32 of a file's bytes, as "crc32:" and eight hexadecimal digits.

    It changes with any one flipped bit and any burst of up to 32. It keeps nobody from writing something else on
    purpose. Reads the whole file, about 1 GB/s.
    """
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"crc32:{value:08x}"


def checksum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The CRC-32 of names, types, shapes and values, as `checksum`; whatever file they are in.

    A safetensors file can say it of itself, in its header, and loses it where somebody else writes the file again.
    """
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"crc32:{value:08x}"


def check_sum(path: Path, expected: Any, *, said_by: Path) -> None:
    """Compare a file's bytes with the checksum that was written down with it; None passes, as in older files.

    Raises:
        ValueError: they differ, the file cannot be read, or `expected` is no checksum.
    """
    if expected is None:
        return
    if not isinstance(expected, str) or not re.fullmatch("crc32:[0-9a-f]{8}", expected):
        raise ValueError(f"{said_by}: a checksum must be 'crc32:' and eight hexadecimal digits, got {shown(expected)}")
    try:
        found = checksum(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    if found != expected:
        raise ValueError(
            f"{path} is damaged: its checksum is {found}, and {said_by.name} says {expected}; take another copy or an "
            "earlier checkpoint"
        )


def check_data(data: Any) -> None:
    """Check the description of a model's data: None, or a dict whose "shape", if it has one, is [C, H, W].

    Raises:
        ValueError: it is something else.
    """
    if data is None:
        return
    if not isinstance(data, dict):
        raise ValueError(f"data must be an object or null, got {shown(data)}")
    shape = data.get("shape")
    fits = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 1 <= n < 2**31 for n in shape)
    if shape is not None and not fits:
        raise ValueError(f"shape in data must be [channels, height, width], got {shown(shape)}")


def check_room(config: UNetConfig, num_tensors: int) -> None:
    """Refuse a configuration of more residual blocks than the file has tensors, before a network is built for it.

    Raises:
        ValueError: see above.
    """
    blocks = config.num_res_blocks * len(config.channel_mult)
    if blocks > num_tensors:
        raise ValueError(
            f"the weights do not fit the configuration: it has {shown(blocks)} residual blocks, the file "
            f"{num_tensors} tensors"
        )
