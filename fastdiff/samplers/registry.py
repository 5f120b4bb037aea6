"""Samplers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fastdiff.diffusion import Diffusion
from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.ddim import ddim
from fastdiff.schedule import check_keys, nearest_name
from fastdiff.table import CoefficientTable

SAMPLERS: dict[str, Callable[..., CoefficientTable]] = {"ddpm": ddpm, "ddim": ddim}


def names() -> list[str]:
    """The names that `build` takes."""
    return sorted(SAMPLERS)


def build(name: str, diffusion: Diffusion, steps: int | None = None, **options: Any) -> CoefficientTable:
    """The table of the sampler called `name`; the options are those of the function of that name.

    Raises:
        ValueError: unknown name or option (the nearest is suggested), or an option out of range.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: {nearest_name(name, SAMPLERS)}")
    builder = SAMPLERS[name]
    known = [key for key in inspect.signature(builder).parameters if key not in ("diffusion", "steps")]
    check_keys(options, known, f"sampler {name!r}")
    return builder(diffusion, steps, **options)
