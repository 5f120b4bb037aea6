"""Checks of what callers give: names, keys, whole numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Real
from typing import Any


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A sentence part that suggests the known names, the nearest first. Empty suggestions are left out."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}"


def check_keys(data: dict[str, Any], known: Iterable[str], what: str) -> None:
    """Raise ValueError when `data` holds a key that `what` does not know, and suggest the nearest."""
    known = list(known)
    for key in data:
        if key not in known:
            raise ValueError(f"unknown key {key!r} in {what}: {nearest_name(str(key), known)}")


def check_count(name: str, value: object) -> None:
    """Raise ValueError where the value is not a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value) >= 1 or float(value) % 1 != 0:
        raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
