"""A sampler in any of the forms that people have it in: a name, a table, a file, a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdiff import samplers
from fastdiff.process.checks import shown
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable

__all__ = ["Sampler", "default_steps", "read_table", "table_of"]

Sampler = str | Path | CoefficientTable | Callable[..., CoefficientTable]
"""A name of `samplers.names()`, the path of a table (.json), a table, or a function (diffusion, steps, **options)."""


def default_steps(sampler: str, diffusion: Diffusion) -> int:
    """Network evaluations where nobody chose: all timesteps for "ddpm", at most 50 for the other samplers."""
    return diffusion.num_timesteps if sampler == "ddpm" else min(50, diffusion.num_timesteps)


def table_of(
    sampler: Sampler, diffusion: Diffusion | None, steps: int | None = None, options: Mapping[str, Any] | None = None
) -> CoefficientTable:
    """The table of a sampler for a process.

    Args:
        sampler: See `Sampler`.
        diffusion: What the network was trained on; None where nobody said, which is enough for a table.
        steps: Network evaluations; see `default_steps` for None. A table has its own.
        options: The sampler's; a table has its own.

    Raises:
        ValueError: an unknown name or option, a file that holds no table, a table of another process or with steps or
            options, or no diffusion for a name or a function.
        TypeError: the sampler is none of these, or its function returns no table.
    """
    options = dict(options or {})
    if isinstance(sampler, Path) or (isinstance(sampler, str) and sampler.lower().endswith(".json")):
        sampler = read_table(Path(sampler))
    if isinstance(sampler, CoefficientTable):
        if steps is not None or options:
            given = ", ".join(["steps"] * (steps is not None) + sorted(options))
            raise ValueError(f"a table is given, so {given} cannot be chosen as well")
        if diffusion is not None:
            sampler.check_process(diffusion)
        return sampler
    if not isinstance(sampler, str) and not callable(sampler):
        raise TypeError(
            "a sampler is a name, a table, the path of one (.json) or a function (diffusion, steps, **options), got "
            f"{shown(sampler)}"
        )
    if diffusion is None:
        raise ValueError(
            f"the sampler {shown(sampler)} is built for a process: give diffusion, what the network was trained on, or "
            "a table"
        )
    if isinstance(sampler, str):
        count = default_steps(sampler, diffusion) if steps is None else steps
        return samplers.build(sampler, diffusion, count, **options)
    table = sampler(diffusion, default_steps("", diffusion) if steps is None else steps, **options)
    if not isinstance(table, CoefficientTable):
        raise TypeError(f"a sampler's function must return a CoefficientTable, got {shown(table)}")
    table.check_process(diffusion)
    return table


def read_table(path: Path, name: str = "table") -> CoefficientTable:
    """A table from a file that `CoefficientTable.to_json` was written to.

    Args:
        path: The file.
        name: What the caller calls it, for errors.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        return CoefficientTable.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{name} {path}: {getattr(error, 'strerror', None) or error}") from error
