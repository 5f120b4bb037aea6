"""Settings that are a name, or a number for each timestep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff.files.images import read_arrays
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, shown
from fastdiff.process.schedule import Array

__all__ = ["PerTimestep", "array_of", "name_or_numbers"]

PerTimestep = str | Path | Sequence[float] | npt.NDArray[Any]
"""A name; or numbers, or a .npy file of them, one for each timestep."""


def name_or_numbers(setting: str, value: Any, known: Collection[str]) -> str | tuple[float, ...]:
    """One of the known names as it is, or the numbers as a tuple; those of a file are read here, once.

    Args:
        setting: What it is called.
        value: A name; numbers, at least 0 and not all 0; or the path of a .npy file of them.
        known: The names.

    Raises:
        ValueError: none of these; the file cannot be read.
    """
    if isinstance(value, str) and value in known:
        return value
    name = spelt(setting)
    if isinstance(value, str) and Path(value).suffix != ".npy":
        raise ValueError(
            f"unknown {name} {shown(value)}: {nearest_name(value, known)}; or a .npy file of numbers, one for each "
            "timestep"
        )
    where = f" in {value}" if isinstance(value, str | Path) else ""
    array = _read(name, Path(value)) if where else np.asarray(value, dtype=object)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{name} must be a name or a list of numbers, one for each timestep, got "
            f"{f'shape {list(array.shape)}' if array.ndim else shown(value)}{where}"
        )
    numbers = [_number(name, t, entry, where) for t, entry in enumerate(array.tolist())]
    if not any(numbers):
        raise ValueError(f"{name} must be above 0 for a timestep at least, got only zeros{where}")
    return tuple(numbers)


def array_of(setting: str, numbers: Sequence[float], num_timesteps: int) -> Array:
    """Numbers as an array [T].

    Raises:
        ValueError: there are more or fewer than T.
    """
    if len(numbers) != num_timesteps:
        raise ValueError(
            f"{spelt(setting)} must have a number for each of the {num_timesteps} timesteps, got {len(numbers)}"
        )
    return np.array(numbers, dtype=np.float64)


def _read(name: str, path: Path) -> npt.NDArray[Any]:
    try:
        arrays = read_arrays(path, ("arr_0",))
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    return np.array(arrays["arr_0"])


def _number(name: str, t: int, value: Any, where: str) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not fits:
        raise ValueError(f"{name} must be finite and at least 0, got {shown(value)} at t = {t}{where}")
    return float(value)
