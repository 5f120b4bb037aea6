"""Samplers compared on a model of one's own: how near their samples come to a reference, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff import samplers
from fastdiff.evaluation.evaluate import EvaluationSettings, Measured, compare_sets, measure
from fastdiff.evaluation.feature_values import Features
from fastdiff.evaluation.images import ImageSet, Pixels
from fastdiff.evaluation.moments import Gaussian
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable

__all__ = ["LONG_RUN", "Candidate", "Draw", "Trial", "candidates", "compare_samplers", "drawn", "long_run"]

Draw = Callable[[CoefficientTable, Sequence[int]], Pixels]
"""From a table and ids to their samples, uint8 [n, H, W, C]; ids have the same noise whatever the table."""

LONG_RUN = "dpmpp_2m"
"""The sampler of a model's own reference: of second order, and one evaluation a step."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A sampler to try.

    Attributes:
        name: What it is called: a sampler's name, with " optimal" where its timesteps are.
        table: The sampler.
    """

    name: str
    table: CoefficientTable


@dataclass(frozen=True, eq=False)
class Trial:
    """What came of a sampler.

    Attributes:
        name: As of the candidate.
        evaluations: Of the network, an image.
        distance: Fréchet distance to the reference.
        kernel_distance: KID to it; None against statistics, or where there are too few images.
        kernel_error: Its standard error; None likewise.
        seconds: Wall time an image, in the batches that were drawn.
        first: Samples of the first ids, uint8 [n, H, W, C].
    """

    name: str
    evaluations: int
    distance: float
    kernel_distance: float | None
    kernel_error: float | None
    seconds: float
    first: Pixels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and CSV."""
        return {name: value for name, value in self.__dict__.items() if name != "first"}


def candidates(
    diffusion: Diffusion, names: Sequence[str], steps: Sequence[int], eps_error: npt.ArrayLike | None = None
) -> list[Candidate]:
    """Every sampler with every number of network evaluations.

    Args:
        diffusion: What the network was trained on.
        names: Of `fastdiff.samplers.names()`, without repeats.
        steps: Network evaluations an image, without repeats.
        eps_error: [T] from `fastdiff.estimate.eps_error`: the first sampler is tried with the timesteps of the least
            bound (`fastdiff.samplers.optimal_timesteps`) as well. None leaves them out.

    Raises:
        ValueError: an unknown sampler, steps out of range, or repeats.
    """
    for name, values in (("samplers", names), ("steps", steps)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{spelt(name)} must name each once, and at least one, got {', '.join(map(str, values))}")
    for name in names:
        if name not in samplers.names():
            raise ValueError(f"unknown {spelt('samplers', 'sampler')} {name!r}: {nearest_name(name, samplers.names())}")
    found = [Candidate(name, samplers.build(name, diffusion, count)) for name in names for count in steps]
    if eps_error is None:
        return found
    for count in steps:
        chosen = samplers.optimal_timesteps(diffusion, eps_error, count)
        found.append(Candidate(f"{names[0]} optimal", samplers.build(names[0], diffusion, timesteps=chosen)))
    return found


def long_run(diffusion: Diffusion, steps: int) -> CoefficientTable:
    """The table of a model's own reference: `LONG_RUN` with so many evaluations, or all timesteps."""
    return samplers.build(LONG_RUN, diffusion, min(steps, diffusion.num_timesteps))


def drawn(draw: Draw, table: CoefficientTable, ids: Sequence[int], shape: tuple[int, int, int], name: str) -> ImageSet:
    """Samples that are drawn as they are asked for."""

    def batches(size: int) -> Iterator[Pixels]:
        return (draw(table, ids[first : first + size]) for first in range(0, len(ids), size))

    return ImageSet(name, len(ids), shape, batches)


def compare_samplers(
    tried: Sequence[Candidate],
    draw: Draw,
    ids: Sequence[int],
    reference: Measured | Gaussian,
    features: Features,
    settings: EvaluationSettings,
    shape: tuple[int, int, int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """Draw the same ids by every candidate, and hold them against one reference.

    Args:
        tried: The candidates.
        draw: See `Draw`.
        ids: Of the samples.
        reference: Measured with the same features and settings, or statistics.
        features: What images are compared by.
        settings: Of the metrics "fid", and "kid" where it is wanted.
        shape: (H, W, C) of the samples.
        progress: Called with the network evaluations that are done, and with all of them.

    Returns:
        A trial for each, in order.
    """
    total = len(ids) * sum(one.table.num_evaluations for one in tried)
    done = 0
    # The first call packs weights and touches memory; no candidate pays for it.
    draw(tried[0].table, ids[: settings.batch_size])
    trials = []
    for one in tried:
        seconds = 0.0
        kept: list[Pixels] = []
        for first in range(0, len(ids), settings.batch_size):
            batch = ids[first : first + settings.batch_size]
            began = time.perf_counter()
            kept.append(draw(one.table, batch))
            seconds += time.perf_counter() - began
            done += len(batch) * one.table.num_evaluations
            if progress is not None:
                progress(done, total)
        images = ImageSet(one.name, len(ids), shape, _again(kept))
        found = measure(images, features, settings)
        scores = compare_sets(found, reference, settings)
        trials.append(
            Trial(
                one.name,
                one.table.num_evaluations,
                scores.values["fid"],
                scores.values.get("kid"),
                scores.errors.get("kid"),
                seconds / len(ids),
                found.first,
            )
        )
    return trials


def _again(batches: list[npt.NDArray[np.uint8]]) -> Callable[[int], Iterator[Pixels]]:
    return lambda size: iter(batches)
