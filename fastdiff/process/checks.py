"""Checks of what callers give: names, keys, whole numbers; and what is raised of a run that went wrong."""

from __future__ import annotations

import difflib
import operator
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastdiff.process.installation import check_folder

# Here, which every part of the package imports, since `fastdiff/__init__.py` may be the other package's.
check_folder(Path(__file__).parents[1])

# Of a value in a message.
_LONGEST = 200
# Bounded in work as well: a value may be made of itself many times over.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, _LONGEST, _LONGEST, _LONGEST
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = _SHORT.maxarray = 16


class NotFinite(FloatingPointError):
    """The state of a sampling run holds NaN or infinity.

    Args:
        row: After this row of the table.
        num_rows: Of the table.
    """

    def __init__(self, row: int, num_rows: int) -> None:
        super().__init__(row, num_rows)
        self.row, self.num_rows = row, num_rows

    def __str__(self) -> str:
        return f"the state holds NaN or infinity after row {self.row} of {self.num_rows}"


def shown(value: object) -> str:
    """A value as messages show it: its repr, cut to 200 characters."""
    try:
        text = _SHORT.repr(value)
    except ValueError:
        # Python prints no whole numbers of thousands of digits.
        text = f"a {type(value).__name__} of too many digits"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def nearest_name(name: object, known: Iterable[str]) -> str:
    """A sentence part that suggests the known names, the nearest first. Empty suggestions are left out."""
    known = list(known)
    close = difflib.get_close_matches(name if isinstance(name, str) else shown(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}"


def check_keys(data: dict[str, Any], known: Iterable[str], what: str) -> None:
    """Raise ValueError when `data` holds a key that `what` does not know, and suggest the nearest."""
    known = list(known)
    for key in data:
        if key not in known:
            raise ValueError(f"unknown key {shown(key)} in {what}: {nearest_name(key, known)}")


def whole_number(
    name: str, value: Any, *, low: int | None = None, high: int | None = None, strict: bool = False
) -> int:
    """The value as an int.

    Args:
        name: What it is called.
        value: Of any numeric type, a float such as 2.0 included; True and False are no numbers.
        low: The least it may be; None for no limit, as for `high`.
        high: The largest.
        strict: Refuse 2.0 as well, for what is stored as it was given.

    Raises:
        ValueError: it is not a whole number, or out of range.
    """
    try:
        number = operator.index(value) if strict else int(value)
        fits = not isinstance(value, bool) and bool(number == value)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits or (low is not None and number < low) or (high is not None and number > high):
        kind = "an int" if strict else "a whole number"
        raise ValueError(f"{name} must be {kind}{_range(low, high)}, got {shown(value)}")
    return number


def check_types(data: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Check the values that stand under some keys; keys that are not there are passed over.

    Args:
        data: The values.
        types: "count" (an int from 1 to 2^31 - 1), "number" (finite), "flag", "text"; a list of them in the plural;
            with " or null", None as well.

    Raises:
        ValueError: a value is of another type; the message names the key.
    """
    for key, words in types.items():
        value = data.get(key)
        kind = words.removesuffix(" or null")
        if key not in data or (value is None and kind != words):
            continue
        one, many, is_right = _TYPES[kind.removesuffix("s")]
        if kind.endswith("s"):
            fits = isinstance(value, list | tuple) and all(is_right(part) for part in value)
        else:
            fits = is_right(value)
        if not fits:
            raise ValueError(
                f"{key} must be {many if kind.endswith('s') else one}{words[len(kind) :]}, got {shown(value)}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


# One, a list of them, and the test.
_TYPES: dict[str, tuple[str, str, Callable[[Any], bool]]] = {
    "count": (
        "a whole number from 1 to 2^31 - 1",
        "a list of whole numbers from 1 to 2^31 - 1",
        lambda value: type(value) is int and 1 <= value < 2**31,
    ),
    "number": ("a finite number", "a list of finite numbers", _is_number),
    "flag": ("true or false", "a list of true and false", lambda value: isinstance(value, bool)),
    "text": ("text", "a list of texts", lambda value: isinstance(value, str)),
}


def height_and_width(name: str, value: Any) -> tuple[int, int]:
    """Height and width in pixels from one number or two.

    Raises:
        ValueError: it is neither.
    """
    pair = value if isinstance(value, list | tuple) else (value, value)
    try:
        height, width = (whole_number(name, number, low=1, strict=True) for number in pair)
    except ValueError:
        raise ValueError(f"{name} must be a number of pixels, or (height, width), got {value!r}") from None
    return height, width


def _range(low: int | None, high: int | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {_written(high)}"
    if low is not None:
        return f", at least {low}"
    return "" if high is None else f", at most {_written(high)}"


def _written(number: int) -> str:
    """The number, a large one near a power of two as such."""
    for text, power in (("", number), (" - 1", number + 1)):
        if power >= 1 << 20 and power.bit_count() == 1:
            return f"2^{power.bit_length() - 1}{text}"
    return str(number)
