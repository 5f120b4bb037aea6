"""Samplers by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastdiff.diffusion import Diffusion
from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.multistep import deis, dpm_solver, dpmpp, dpmpp_2m, dpmpp_3m, dpmpp_sde, lms
from fastdiff.samplers.pndm import ipndm, plms, pndm
from fastdiff.samplers.singlestep import dpm_solver_singlestep, dpmpp_singlestep
from fastdiff.samplers.unipc import unipc
from fastdiff.schedule import NoiseSchedule, check_keys, nearest_name
from fastdiff.table import CoefficientTable

_BUILDERS: tuple[Callable[..., CoefficientTable], ...] = (
    ddpm,
    ddim,
    dpmpp,
    dpmpp_2m,
    dpmpp_3m,
    dpmpp_singlestep,
    dpmpp_sde,
    dpm_solver,
    dpm_solver_singlestep,
    unipc,
    deis,
    lms,
    ipndm,
    plms,
    pndm,
)
SAMPLERS: dict[str, Callable[..., CoefficientTable]] = {builder.__name__: builder for builder in _BUILDERS}


@dataclass(frozen=True)
class SamplerInfo:
    """What a sampler is, read from its function and from a table that it built.

    Attributes:
        name: As `build` takes it.
        summary: First sentence of its documentation.
        order: Order of convergence with its default options; 0 when stochastic.
        evaluations_per_step: Network evaluations per level visited, of a table of 24 evaluations.
        stochastic: Whether rows draw noise.
        options: Its keyword options with their defaults.
        source: Where it is from.
    """

    name: str
    summary: str
    order: int
    evaluations_per_step: float
    stochastic: bool
    options: dict[str, Any]
    source: str


def names() -> list[str]:
    """The names that `build` takes."""
    return sorted(SAMPLERS)


def build(name: str, diffusion: Diffusion, steps: int | None = None, **options: Any) -> CoefficientTable:
    """The table of the sampler called `name`; the options are those of the function of that name.

    Raises:
        ValueError: unknown name or option (the nearest is suggested), or an option out of range.
    """
    builder = _builder(name)
    known = [key for key in inspect.signature(builder).parameters if key not in ("diffusion", "steps")]
    check_keys(options, known, f"sampler {name!r}")
    return builder(diffusion, steps, **options)


def describe(name: str) -> SamplerInfo:
    """What the sampler called `name` is. Raises ValueError for an unknown name."""
    builder = _builder(name)
    parameters = inspect.signature(builder).parameters
    options = {key: p.default for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    text = inspect.getdoc(builder) or ""
    source = re.search(r"Source: (.*?)(?:\n\n|$)", text, re.DOTALL)
    table = builder(Diffusion(NoiseSchedule.linear(1000)), 24)
    moving = table["evaluate"] == 1
    levels = len({round(float(level), 12) for level in table["t"][moving]})
    return SamplerInfo(
        name=name,
        summary=text.split(".")[0].replace("\n", " "),
        order=table.order,
        evaluations_per_step=round(table.num_evaluations / max(1, levels), 2),
        stochastic=table.is_stochastic,
        options=options,
        source=" ".join(source.group(1).split()).rstrip(".") if source else "",
    )


def to_markdown() -> str:
    """The table of all samplers, for the documentation."""
    lines = ["| name | order | stochastic | options | source |", "|---|---|---|---|---|"]
    for name in names():
        info = describe(name)
        options = ", ".join(f"{key}={value!r}" for key, value in info.options.items())
        order = str(info.order) if info.order else "-"
        lines.append(f"| `{name}` | {order} | {'yes' if info.stochastic else 'no'} | {options} | {info.source} |")
    return "\n".join(lines) + "\n"


def _builder(name: str) -> Callable[..., CoefficientTable]:
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: {nearest_name(name, SAMPLERS)}")
    return SAMPLERS[name]
