"""The schema of an op, made from the types of its call and of its results."""

from __future__ import annotations

import string
from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from fastdiff.calls import MUTATED

_NAMES = {Tensor: "Tensor", int: "int", float: "float", bool: "bool", str: "str", torch.dtype: "ScalarType"}


def schema(call: type[tuple[Any, ...]], results: Any) -> str:
    """What `torch.library` wants of an op behind its name.

    Args:
        call: A NamedTuple of `fastdiff.calls`: a field for each argument.
        results: The type of what the op returns: Tensor, a tuple of tensors, or NoneType.

    Returns:
        For example "(Tensor x, Tensor? bias, Tensor(a!) out) -> ()"; tensors that are written get letters in turn.
    """
    letters = iter(string.ascii_lowercase)
    hints = get_type_hints(call, include_extras=True)
    arguments = ", ".join(f"{_name(hint, letters)} {field}" for field, hint in hints.items())
    if results in (Tensor, NoneType):
        returned = "Tensor" if results is Tensor else "()"
    else:
        returned = f"({', '.join(_NAMES[part] for part in get_args(results))})"
    return f"({arguments}) -> {returned}"


def _name(hint: Any, letters: Iterator[str]) -> str:
    parts = get_args(hint)
    if get_origin(hint) is Annotated:
        return f"Tensor({next(letters)}!)" if parts[1] == MUTATED else str(parts[1])
    if get_origin(hint) is Literal:
        return _NAMES[str]
    if NoneType in parts:
        (value,) = (part for part in parts if part is not NoneType)
        return f"{_name(value, letters)}?"
    return _NAMES[hint]
