"""Arguments of functions: their types against the values given, and how they are spelt where the caller is.

A message names an argument with `spelt`: by its name in Python, by its option at the command line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fastdiff.process.checks import shown

__all__ = ["advised", "check_options", "spelling", "spelling_also", "spelt"]

# The options of the command that runs, by the arguments that they stand for, and those that were given.
_COMMAND: ContextVar[tuple[Mapping[str, str], Collection[str]]] = ContextVar("command", default=({}, ()))


@contextmanager
def spelling(options: Mapping[str, str], given: Collection[str]) -> Iterator[None]:
    """Within the block, a command calls.

    Args:
        options: The command's options, as they are typed, by the names of the arguments that they stand for.
        given: The arguments whose options were typed.
    """
    token = _COMMAND.set((options, given))
    try:
        yield
    finally:
        _COMMAND.reset(token)


@contextmanager
def spelling_also(options: Mapping[str, str]) -> Iterator[None]:
    """Within the block, arguments that have no option of their own are spelt so, where a command runs."""
    known, given = _COMMAND.get()
    token = _COMMAND.set(({**options, **known} if known else known, given))
    try:
        yield
    finally:
        _COMMAND.reset(token)


def spelt(name: str, words: str | None = None) -> str:
    """An argument that the caller gave: --size where it was given at the command line; else `words`, or its name."""
    options, given = _COMMAND.get()
    return options[name] if name in given else words or name


def advised(name: str, value: object = None) -> str:
    """An argument that the caller may give: size=64, or --size 64 for a command that has the option."""
    options, _ = _COMMAND.get()
    if value is None:
        return options.get(name, name)
    if name not in options:
        return f"{name}={value!r}"
    if value is True and " " not in options[name]:
        # A flag stands alone.
        return options[name]
    # Of --set section.key=value, the option is the part before the sign.
    return f"{options[name]}{'=' if ' ' in options[name] else ' '}{value}"


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
