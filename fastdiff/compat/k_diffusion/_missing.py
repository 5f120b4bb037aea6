"""What k-diffusion has and this does not: said where it is looked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

__all__ = ["missing"]


def missing(name: str, module: str, elsewhere: Mapping[str, str]) -> NoReturn:
    """Raise the error of a name that a module does not have.

    Args:
        name: What was looked for.
        module: Where.
        elsewhere: Of names that k-diffusion has: what to do without them.

    Raises:
        ImportError: k-diffusion has it. An AttributeError would lose its text in "from ... import".
        AttributeError: nobody has it.
    """
    if name in elsewhere:
        raise ImportError(
            f"{module} has no {name}, which is k-diffusion's: {elsewhere[name]}; docs/migration.md lists what is not "
            "here"
        )
    raise AttributeError(f"module {module!r} has no attribute {name!r}")
