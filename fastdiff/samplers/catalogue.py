"""What each sampler is, read from its function and from a table that it built."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, Literal

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.samplers.analytic import gaussian_eps_moment
from fastdiff.samplers.registry import names, registered


@dataclass(frozen=True)
class SamplerInfo:
    """What a sampler is.

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


def describe(name: str) -> SamplerInfo:
    """What the sampler called `name` is. Raises ValueError for an unknown name."""
    entry = registered(name)
    options = {key: p.default for key, p in entry.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    text = inspect.getdoc(entry.build) or ""
    source = re.search(r"Source: (.*?)(?:\n\n|$)", text, re.DOTALL)
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    statistics = {"eps_moment": gaussian_eps_moment(diffusion, 0.25)} if "eps_moment" in options else {}
    table = entry.build(diffusion, 24, **statistics)
    summary = re.split(r"[.:](?:\s|$)", " ".join(text.split()).removeprefix("Coefficients of "))[0]
    return SamplerInfo(
        name=name,
        summary=summary[:1].upper() + summary[1:],
        order=table.order,
        evaluations_per_step=entry.evaluations_per_step,
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
