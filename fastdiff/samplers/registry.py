"""Samplers by name: a builder writes itself in with `@sampler`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, overload

from fastdiff.process.arguments import check_options, spelt
from fastdiff.process.checks import check_keys, nearest_name
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Registered:
    """A builder, and what its function and tables cannot tell.

    Attributes:
        build: From a diffusion, steps and options to a table.
        evaluations_per_step: Network evaluations per step from one level to the next, with default options.
    """

    build: Callable[..., CoefficientTable]
    evaluations_per_step: int = 1

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The builder's arguments by name."""
        return inspect.signature(self.build).parameters


# Filled as the modules of this package are imported, which importing any of them does.
SAMPLERS: dict[str, Registered] = {}


@overload
def sampler(build: Callable[_P, CoefficientTable], /) -> Callable[_P, CoefficientTable]: ...
@overload
def sampler(
    *, evaluations_per_step: int
) -> Callable[[Callable[_P, CoefficientTable]], Callable[_P, CoefficientTable]]: ...
def sampler(build: Callable[..., CoefficientTable] | None = None, /, *, evaluations_per_step: int = 1) -> Any:
    """Write a builder in under its function's name: `@sampler`, or `@sampler(evaluations_per_step=2)`.

    Its tables remember the process that they were built for.
    """

    def write_in(build: Callable[..., CoefficientTable]) -> Callable[..., CoefficientTable]:
        @functools.wraps(build)
        def remembered(*args: Any, **options: Any) -> CoefficientTable:
            return build(*args, **options).built_for(args[0] if args else options["diffusion"])

        SAMPLERS[build.__name__] = Registered(remembered, evaluations_per_step)
        return remembered

    return write_in if build is None else write_in(build)


def register(name: str, build: Callable[..., CoefficientTable], *, evaluations_per_step: int = 1) -> None:
    """Add a sampler of your own under a name that `build` and `names` then know, in this process.

    Args:
        name: Not yet taken.
        build: From (diffusion, steps, **options) to a table.
        evaluations_per_step: Network evaluations per step from one level to the next.

    Raises:
        ValueError: the name is taken.
        TypeError: build is no function.
    """
    if name in SAMPLERS:
        raise ValueError(f"there is a sampler {name!r} already: take another name")
    if not callable(build):
        raise TypeError(f"build must be a function (diffusion, steps, **options), got {type(build).__name__}")
    SAMPLERS[name] = Registered(build, evaluations_per_step)


def names(*, with_statistics: bool = False) -> list[str]:
    """The names that `build` takes.

    Args:
        with_statistics: Also those that need statistics of the network (`eps_moment`) besides the diffusion.
    """
    return sorted(name for name, entry in SAMPLERS.items() if with_statistics or "eps_moment" not in entry.parameters)


def registered(name: str) -> Registered:
    """The entry of the sampler called `name`. Raises ValueError for an unknown name, and suggests the nearest."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown {spelt('sampler')} {name!r}: {nearest_name(name, SAMPLERS)}")
    return SAMPLERS[name]


def build(name: str, diffusion: Diffusion, steps: int | None = None, **options: Any) -> CoefficientTable:
    """The table of the sampler called `name`; the options are those of the function of that name.

    Raises:
        ValueError: unknown name or option (the nearest is suggested), or an option out of range.
    """
    entry = registered(name)
    check_keys(options, [key for key in entry.parameters if key not in ("diffusion", "steps")], f"sampler {name!r}")
    check_options(options, entry.build, f"sampler {name!r}")
    table = entry.build(diffusion, steps, **options)
    # A builder of somebody's own may not have said.
    return table if table.process is not None else table.built_for(diffusion)
