"""Samplers by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastdiff.process.checks import check_keys, nearest_name
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.analytic import analytic_ddim, analytic_ddpm, gaussian_eps_moment
from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.ddim import ddim, ddim_encode
from fastdiff.samplers.langevin import annealed_langevin, langevin, predictor_corrector
from fastdiff.samplers.multistep import deis, dpm_solver, dpmpp, dpmpp_2m, dpmpp_3m, dpmpp_sde, lms
from fastdiff.samplers.pndm import ipndm, plms, pndm
from fastdiff.samplers.repaint import renoise, repaint
from fastdiff.samplers.singlestep import dpm_solver_singlestep, dpmpp_singlestep
from fastdiff.samplers.two_stage import dpm2, dpm2_ancestral, edm, euler, euler_ancestral, heun
from fastdiff.samplers.unipc import unipc

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
    euler,
    euler_ancestral,
    heun,
    dpm2,
    dpm2_ancestral,
    edm,
    analytic_ddpm,
    analytic_ddim,
    langevin,
    annealed_langevin,
    predictor_corrector,
    repaint,
    renoise,
    ddim_encode,
)
SAMPLERS: dict[str, Callable[..., CoefficientTable]] = {builder.__name__: builder for builder in _BUILDERS}


# More than one network evaluation per step of the ladder, with default options.
_EVALUATIONS_PER_STEP = dict.fromkeys(
    ("heun", "dpm2", "dpm2_ancestral", "edm", "dpm_solver_singlestep", "dpmpp_singlestep", "predictor_corrector"), 2
)


@dataclass(frozen=True)
class SamplerInfo:
    """What a sampler is, read from its function and from a table that it built.

    Attributes:
        name: As `build` takes it.
        summary: First sentence of its documentation, without the words that all begin with.
        order: Order of convergence with its default options; 0 when stochastic.
        evaluations_per_step: Network evaluations per step from one level to the next, with its default options.
        stochastic: Whether rows draw noise.
        starts_from: "noise", or "image" where `x_init` is needed.
        options: Its keyword options with their defaults.
        source: Where it is from.
    """

    name: str
    summary: str
    order: int
    evaluations_per_step: int
    stochastic: bool
    starts_from: Literal["noise", "image"]
    options: dict[str, Any]
    source: str


def names(*, with_statistics: bool = False) -> list[str]:
    """The names that `build` takes.

    Args:
        with_statistics: Also those that need statistics of the network (`eps_moment`) besides the diffusion.
    """
    return sorted(name for name in SAMPLERS if with_statistics or "eps_moment" not in _parameters(name))


def build(name: str, diffusion: Diffusion, steps: int | None = None, **options: Any) -> CoefficientTable:
    """The table of the sampler called `name`; the options are those of the function of that name.

    Raises:
        ValueError: unknown name or option (the nearest is suggested), or an option out of range.
    """
    known = [key for key in _parameters(name) if key not in ("diffusion", "steps")]
    check_keys(options, known, f"sampler {name!r}")
    return SAMPLERS[name](diffusion, steps, **options)


def describe(name: str) -> SamplerInfo:
    """What the sampler called `name` is. Raises ValueError for an unknown name."""
    parameters = _parameters(name)
    options = {key: p.default for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    text = inspect.getdoc(SAMPLERS[name]) or ""
    source = re.search(r"Source: (.*?)(?:\n\n|$)", text, re.DOTALL)
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    statistics = {"eps_moment": gaussian_eps_moment(diffusion, 0.25)} if "eps_moment" in parameters else {}
    table = build(name, diffusion, 24, **statistics)
    summary = re.split(r"[.:](?:\s|$)", " ".join(text.split()).removeprefix("Coefficients of "))[0]
    return SamplerInfo(
        name=name,
        summary=summary[:1].upper() + summary[1:],
        order=table.order,
        evaluations_per_step=_EVALUATIONS_PER_STEP.get(name, 1),
        stochastic=table.is_stochastic,
        starts_from="noise" if table.init_scale else "image",
        options=options,
        source=" ".join(source.group(1).split()).rstrip(".") if source else "",
    )


def to_markdown() -> str:
    """The table of all samplers, for the documentation."""
    lines = ["| name | what it is | order | evaluations per step | noise | options | source |", "|" + "---|" * 7]
    for name in names(with_statistics=True):
        info = describe(name)
        options = " ".join(f"`{key}={value!r}`" for key, value in info.options.items())
        order = str(info.order) if info.order else "-"
        cells = [f"`{name}`", info.summary, order, str(info.evaluations_per_step)]
        cells += ["yes" if info.stochastic else "no", options, info.source]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: {nearest_name(name, SAMPLERS)}")
    return inspect.signature(SAMPLERS[name]).parameters
