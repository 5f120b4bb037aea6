"""A report as files of one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdiff.files.atomic import write_text

__all__ = ["Part", "write_report"]

Part = Mapping[str, Any] | str | Callable[[Path], Path]
"""Plain values, which become JSON, a text, or what draws a figure to a path and returns it."""


def write_report(folder: str | Path, parts: Mapping[str, Part]) -> list[Path]:
    """Write the parts of a report.

    Args:
        folder: Made where it is not there.
        parts: By the name of its file.

    Returns:
        The files, in their order.

    Raises:
        RuntimeError: a figure needs matplotlib, which is not installed.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    return [_write(out / name, part) for name, part in parts.items()]


def _write(path: Path, part: Part) -> Path:
    if callable(part):
        return part(path)
    text = part if isinstance(part, str) else json.dumps(part, indent=2, ensure_ascii=False) + "\n"
    return write_text(path, text)
