"""Functions whose parameters are those of another, or of a table of flags, and are not written a second time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def parameter(name: str, value: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """A parameter of the type that `value` has."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, default=default, annotation=type(value).__name__)


def with_flags(names: Iterable[str], values: Mapping[str, Any]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator: the function is called with these flags, in this order, and gets each by name.

    Args:
        names: The flags.
        values: A value of each one's type.
    """
    return with_parameters(parameter(name, values[name]) for name in names)


def without_surplus(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: arguments that the function does not have are refused with what to do about them."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind_partial(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}() {error}{_advice(error)}") from None
        return function(*args, **kwargs)

    return call


def _advice(error: TypeError) -> str:
    if "unexpected keyword" not in str(error):
        return ""
    return (
        "; it has the arguments of OpenAI's code, not those of its forks: leave it out, and do here what it does there"
    )


def with_parameters_of(other: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """A decorator: the function is called as `other` is, and gets each argument by name, with its default."""
    return with_parameters(inspect.signature(other).parameters.values())


def with_parameters(parameters: Iterable[inspect.Parameter]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator: the function is called with these parameters, and gets each argument by name, with its default."""
    chosen = list(parameters)

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(function).replace(parameters=chosen)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            try:
                given = signature.bind_partial(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__qualname__}() {error}{_advice(error)}") from None
            given.apply_defaults()
            missing = [repr(name) for name in signature.parameters if name not in given.arguments]
            if missing:
                what = f"{len(missing)} required positional argument{'s' if len(missing) > 1 else ''}"
                raise TypeError(f"{function.__qualname__}() missing {what}: {', '.join(missing)}")
            return function(**given.arguments)

        vars(call)["__signature__"] = signature
        return call

    return decorate
