"""`fastdiff likelihood`: images scored in bits/dim."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.cli.options import (
    DeviceOption,
    ModelArgument,
    ThreadsOption,
    WeightsOption,
    blaming,
    key_values,
    load_pipeline,
)
from fastdiff.cli.output import check_free, check_writable

if TYPE_CHECKING:
    from fastdiff.files.data import ImageData
    from fastdiff.pipeline import Pipeline

__all__ = ["likelihood"]


def likelihood(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(help="digits, a folder of images, or a .npz or .npy file.")],
    method: Annotated[
        str, typer.Option(help="bound, estimate (of the bound, from some terms), ode, iwae or rate_distortion.")
    ] = "bound",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="Of the method, as name=value: probes=4, target_error=0.02. May be repeated."),
    ] = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, help="Images to score, spread evenly; all if left out.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the digits: test, train or all; test if left out.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Of a folder: crop and resize its images to this.")] = None,
    channels: Annotated[int | None, typer.Option(help="Of a folder: 1 for grey, 3 for colour.")] = None,
    layout: Annotated[str | None, typer.Option(help="Of an array whose shape allows both: NHWC or NCHW.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Evaluations at a time.")] = 256,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the bound by timestep, or rate and distortion, into this .png.")
    ] = None,
    weights: WeightsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what lies at --json and --figure.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Score images in bits/dim: their negative log-likelihood, or a bound on it."""
    if figure is not None:
        check_free(figure, (".png",), overwrite=overwrite, option="--figure")
    if json_file is not None:
        check_free(json_file, (json_file.suffix.lower(),), overwrite=overwrite, option="--json")
    if figure is not None and method in ("ode", "iwae"):
        raise ValueError(f"method {method!r} has no figure: leave out --figure")
    options = key_values(option or [])
    for path in (figure, json_file):
        if path is not None:
            check_writable(path.parent, path.name)
    pipe = load_pipeline(model, device, weights)
    from fastdiff.files import data as sources
    from fastdiff.generation.score import check_scorable

    chosen: Any = split if split is not None or data != "digits" else "test"
    pixels: Any = channels
    arrangement: Any = layout
    images = sources.load(data, split=chosen, size=size, channels=pixels, layout=arrangement)
    check_scorable(pipe, images)
    if num is not None and num < len(images):
        images = images.take([i * len(images) // num for i in range(num)])
    with blaming("--option", option):
        score = _score(pipe, images, method, {"seed": seed, "batch_size": batch_size} | options)
    numbers = _likelihood_numbers(pipe, images, score, seed)
    _print_likelihood(numbers)
    if json_file is not None:
        from fastdiff.files.atomic import write_text

        write_text(json_file, json.dumps(numbers, indent=2) + "\n")
        typer.echo(str(json_file))
    if figure is not None:
        from fastdiff.likelihood import draw_report

        typer.echo(str(draw_report(figure, score, title=images.source)))


def _score(pipe: Pipeline, images: ImageData, method: Any, options: dict[str, Any]) -> Any:
    from fastdiff.cli.progress import Bars

    with Bars() as bars:
        update = bars.counting("scoring", len(images))
        return pipe.likelihood(
            images.to_model(images.images),
            method,
            labels=None if pipe.unet.config.num_classes is None else images.labels,
            on_progress=lambda done, total: update(len(images) * done / total),
            **options,
        )


def _likelihood_numbers(pipe: Pipeline, images: ImageData, score: Any, seed: int) -> dict[str, Any]:
    from fastdiff.cli.environment import versions
    from fastdiff.likelihood import report

    about = {
        "num_images": len(images),
        "levels": pipe.scaling.levels,
        "timesteps": pipe.diffusion.num_timesteps,
        "data": images.source,
        "model": pipe.metadata["path"],
        "step": pipe.metadata["step"],
        "weights": pipe.metadata["weights"],
        "seed": seed,
        "versions": versions(),
    }
    return report(score, about=about)


# What is printed of a score, where its report has it.
_PRINTED = (
    ("prior", "prior", ".3e"),
    ("kl", "KL terms", ".4f"),
    ("decoder", "decoder", ".4f"),
    ("rate", "rate", ".4f"),
    ("distortion", "distortion", ".4f"),
    ("rmse", "RMSE at the end", ".3f"),
    ("mean_sampling_error", "± of the estimate", ".4f"),
    ("offset", "of it, offset of the dequantisation", ".4f"),
    ("error_estimate", "error of the integration", ".1e"),
    ("probe_error", "± of the probes", ".4f"),
    ("trajectories", "trajectories", "d"),
    ("one_trajectory", "with one trajectory", ".4f"),
)


def _print_likelihood(numbers: dict[str, Any]) -> None:
    levels = numbers["levels"]
    unit = f"a pixel has {levels} values" if levels else "the density of continuous values"
    images = "1 image" if numbers["num_images"] == 1 else f"{numbers['num_images']:,} images"
    # One image has no spread.
    error = numbers["standard_error"]
    spread = "" if error is None or math.isnan(error) else f" ± {error:.4f}"
    typer.echo(f"{numbers['bits_per_dim']:.4f}{spread} bits/dim ({images}; {unit})")
    for key, name, form in _PRINTED:
        if numbers.get(key):
            typer.echo(f"  {name:<9}{numbers[key]:{form}}" if len(name) < 9 else f"  {name} {numbers[key]:{form}}")
    if numbers.get("evaluations"):
        typer.echo(f"  {numbers['evaluations']:,} evaluations")
