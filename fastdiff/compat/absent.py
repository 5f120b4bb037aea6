"""Names of other libraries' modules that are not here: the import says what to take in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["explained"]


def explained(module: str, advice: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`.

    Args:
        module: Its name.
        advice: What to do, by the names that are not here.
    """

    def look_up(name: str) -> Any:
        if name in advice:
            # An AttributeError would lose its text in "from ... import".
            raise ImportError(f"{module} has no {name}: {advice[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look_up
