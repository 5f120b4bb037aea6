"""`fastdiff compare`: which sampler, and how many evaluations, for a model of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.cli.evaluate import FeaturesOption, check_folder, names_of, reference_of, told_by_bars
from fastdiff.cli.options import (
    DeviceOption,
    ModelArgument,
    PrecisionOption,
    ThreadsOption,
    WeightsOption,
    load_pipeline,
)
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown, whole_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastdiff.evaluation.comparison import Draw
    from fastdiff.pipeline import Pipeline
    from fastdiff.process.table import CoefficientTable

__all__ = ["compare"]

# Images that the timesteps of the least bound are chosen by.
_ESTIMATED = 64


def compare(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder for comparison.md, .json, .csv, .png and pictures.png.")],
    samplers: Annotated[
        str, typer.Option(help="Names with commas between; `fastdiff info samplers` lists them.")
    ] = "ddim,dpmpp_2m,unipc",
    steps: Annotated[str, typer.Option(help="Network evaluations an image, with commas between.")] = "5,10,20,50",
    num: Annotated[int, typer.Option("--num", "-n", min=2, help="Samples by each.")] = 1000,
    reference: Annotated[
        str | None,
        typer.Option(help="What `fastdiff evaluate` takes; if left out, the model's own samples of --long-run."),
    ] = None,
    long_run: Annotated[
        int, typer.Option(min=1, help="Network evaluations of the model's own reference, by dpmpp_2m.")
    ] = 200,
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="Recommend one of at most so many evaluations; for each of --steps, if left out."),
    ] = None,
    optimal: Annotated[
        bool,
        typer.Option("--optimal/--no-optimal", help="Try the first sampler by the best timesteps for the bound."),
    ] = True,
    features: FeaturesOption = "builtin",
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    labels: Annotated[str | None, typer.Option(help="Of a network with classes, in turn; all, if left out.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what lies in OUT.")] = False,
    precision: PrecisionOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Compare samplers on a model: distance and time by evaluations, the same noise in pictures, and which to take."""
    from fastdiff.data.opening import DataOptions
    from fastdiff.evaluation import EvaluationSettings, Gaussian, measure, open_features
    from fastdiff.evaluation.comparison import LONG_RUN, Candidate, candidates, compare_samplers, drawn
    from fastdiff.evaluation.comparison import long_run as long_run_of
    from fastdiff.evaluation.comparison_report import FILES, ComparisonReport
    from fastdiff.evaluation.evaluate import check_sets
    from fastdiff.evaluation.kid import LEAST
    from fastdiff.evaluation.recommend import check_budget
    from fastdiff.generation.generate import precision_of

    names, counts = names_of(samplers, "samplers"), _numbers(steps)
    check_budget(budget, counts)
    check_folder(out, FILES, overwrite=overwrite, name="OUT")
    pipe = load_pipeline(model, device, weights, precision)
    # Before anything is computed: an unknown sampler, steps that the process does not have.
    candidates(pipe.diffusion, names, counts)
    network = open_features(features, pipe.image_shape[0], pipe.device)
    asked = EvaluationSettings(("fid", "kid") if num >= LEAST else ("fid",), batch_size, compared=num)
    draw, shape = _drawing(pipe, num, seed, labels, guidance)
    try:
        held = None if reference is None else reference_of(reference, DataOptions())
    except ValueError as error:
        raise ValueError(f"--reference: {error}") from error
    if isinstance(held, Gaussian):
        asked = replace(asked, metrics=("fid",))
    ids = range(num)
    with told_by_bars() as told:
        table = long_run_of(pipe.diffusion, long_run)
        own = drawn(
            draw,
            table,
            range(num, 2 * num),
            shape,
            f"its own samples by {LONG_RUN}, {table.num_evaluations} evaluations",
        )
        there = own if held is None else held
        check_sets([drawn(draw, table, ids, shape, str(model))], there, network, asked)
        measured = there if isinstance(there, Gaussian) else measure(there, network, asked, told("reference"))
        eps_error = _eps_error(pipe, seed, draw, told("statistics")) if optimal else None
        tried = candidates(pipe.diffusion, names, counts, eps_error)
        limits = [Candidate(f"{LONG_RUN}, long", table)] if held is None else []
        trials = compare_samplers(
            [*tried, *limits], draw, ids, measured, network, asked, shape, progress=told("samples")
        )  # fmt: skip
    about = {
        "model": str(model),
        "num": num,
        "seed": seed,
        "features": network.name,
        "reference": reference or own.source,
    } | precision_of(pipe)
    report = ComparisonReport(
        trials[: len(tried)], trials[-1] if limits else None, about, [budget] if budget is not None else counts
    )
    paths = report.write(out)
    typer.echo(report.to_markdown())
    for path in paths:
        typer.echo(str(path))


def _numbers(text: str) -> list[int]:
    """Numbers with commas between."""
    try:
        return [whole_number(spelt("steps"), int(part), low=1) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{spelt('steps')} must be whole numbers with commas between, got {shown(text)}") from error


def _drawing(
    pipe: Pipeline, num: int, seed: int, labels: str | None, guidance: float | None
) -> tuple[Draw, tuple[int, int, int]]:
    """Samples of ids as `fastdiff generate` makes them, and their shape."""
    from fastdiff.generation.generate import Request, Samples

    kinds = None if labels is None else names_of(labels, "labels")
    made: dict[int, Samples] = {}

    def draw(table: CoefficientTable, ids: Sequence[int]) -> NDArray[np.uint8]:
        if id(table) not in made:
            request = Request(2 * num, sampler=table, seed=seed, labels=kinds, guidance=guidance)
            made[id(table)] = Samples.of(pipe, request)
        return made[id(table)].images(ids)

    channels, height, width = pipe.image_shape
    return draw, (height, width, channels)


def _eps_error(pipe: Pipeline, seed: int, draw: Draw, progress: Callable[[int, int], None]) -> Any:
    """Of the model's own samples, which it has learned the distribution of."""
    import torch

    from fastdiff import samplers as known
    from fastdiff.likelihood import estimate

    pixels = draw(known.build("ddim", pipe.diffusion, min(50, pipe.diffusion.num_timesteps)), range(_ESTIMATED))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(pipe.device)
    classes = pipe.classes
    labels = None if classes.num is None else torch.arange(_ESTIMATED, device=pipe.device) % classes.num_real
    return estimate.eps_error(
        pipe.unet, pipe.diffusion, images, seed=seed,
        model_kwargs=None if labels is None else {"y": labels}, on_progress=progress,
    )  # fmt: skip
