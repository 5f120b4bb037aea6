"""Options by name against the types of the function that takes them, for callers whose values come from text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastdiff.process.checks import shown

__all__ = ["check_options"]


def _may_be_number(value: Any) -> bool:
    # What NumPy and PyTorch have for numbers is left to the function.
    return not isinstance(value, str | bytes | bool | list | tuple | Mapping | set | None)


# A part of a type that a plain value can have, what it is called, and the test.
_PLAIN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "float": ("a number", _may_be_number),
    "int": ("a whole number", _may_be_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a name", lambda value: isinstance(value, str)),
    "None": ("none", lambda value: value is None),
}
_NUMBERS = re.compile(r"(Sequence|list|tuple)\[(float|int)(, (\.\.\.|float|int))*\]")


def check_options(options: Mapping[str, Any], function: Callable[..., Any], what: str) -> None:
    """Raise ValueError for an option of a type that the function does not take.

    Only what its annotations say in plain types is held against them: numbers, true and false, names, none, and lists
    of numbers. Other types are left to the function, as is whether a number is in range.

    Args:
        options: Values by the names of the function's arguments.
        function: What they are given to.
        what: What takes them, for the message.
    """
    parameters = inspect.signature(function).parameters
    for name, value in options.items():
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if not isinstance(annotation, str):
            continue
        known = [_test_of(part.strip()) for part in _parts(annotation)]
        if any(entry is None for entry in known):
            continue
        tests = [entry for entry in known if entry is not None]
        if not any(test(value) for _, test in tests):
            expected = " or ".join(dict.fromkeys(called for called, _ in tests))
            raise ValueError(f"{name} of {what} must be {expected}, got {shown(value)}")


def _parts(annotation: str) -> list[str]:
    """The members of a union, split outside of brackets."""
    return re.split(r"\|(?![^\[]*\])", annotation)


def _test_of(part: str) -> tuple[str, Callable[[Any], bool]] | None:
    if _NUMBERS.fullmatch(part):
        return (
            "a list of numbers",
            lambda value: (
                not isinstance(value, str | Mapping)
                and hasattr(value, "__iter__")
                and all(_may_be_number(one) for one in value)
            ),
        )
    return _PLAIN.get(part)
