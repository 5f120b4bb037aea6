"""`fastdiff score`: a data set scored, or encoded, in parts that processes share out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.cli.generate import (
    EngineOption,
    PartSizeOption,
    ShardOption,
    WorkersOption,
    check_engine,
    counted,
    shard_of,
)
from fastdiff.cli.options import (
    DeviceOption,
    ModelArgument,
    PrecisionOption,
    ThreadsOption,
    WeightsOption,
    blaming,
    key_values,
    load_pipeline,
)
from fastdiff.cli.output import check_writable

if TYPE_CHECKING:
    from fastdiff.data.opening import DataOptions
    from fastdiff.generation.folder import JobFolder
    from fastdiff.generation.score import ScoreRequest, Scores

__all__ = ["score"]


def score(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(help="What `fastdiff train --data` takes.")],
    out: Annotated[Path, typer.Argument(help="The job's folder; the same command goes on with what is missing in it.")],
    method: Annotated[
        str, typer.Option(help="bound, ode or iwae, in bits/dim; or encode: the noise that an image is mapped to.")
    ] = "bound",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Of the method, as name=value: probes=4. May be repeated.")
    ] = None,
    terms: Annotated[bool, typer.Option("--terms", help="With bound: keep each term of each image.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    split: Annotated[str | None, typer.Option(help="Of the data; test, if left out, of the digits.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Of pictures: crop and resize them to this.")] = None,
    channels: Annotated[int | None, typer.Option(help="Of pictures: 1 for grey, 3 for colour.")] = None,
    layout: Annotated[str | None, typer.Option(help="Of an array whose shape allows both: NHWC or NCHW.")] = None,
    part_size: PartSizeOption = 512,
    shard: ShardOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    precision: PrecisionOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Score a data set in parts, in any number of processes; a command that was stopped goes on where it was."""
    from fastdiff.data.opening import DataOptions, open_images
    from fastdiff.generation import score as scoring

    options = key_values(option or [])
    check_engine(engine, shard, workers)
    own = shard_of(shard)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder")
    kind: Any = method
    request = scoring.ScoreRequest(kind, options, seed, terms, part_size)
    pipe = load_pipeline(model, device, weights, precision)
    check_writable(out)
    pixels: Any = channels
    arrangement: Any = layout
    part = "test" if data == "digits" and split is None else split
    how = DataOptions(split=part, size=size, channels=pixels, layout=arrangement)
    images = open_images(data, how)
    try:
        with blaming("--option", option), counted("scoring") as tell:
            if engine == "ray":
                from fastdiff.generation.ray_engine import run_by_ray

                source = str(Path(data).absolute()) if Path(data).exists() else data
                place = (model.absolute(), str(pipe.device), weights, pipe.precision)
                load = partial(_scores, place, source, how, request)
                folder = run_by_ray(
                    scoring.Scores.of(pipe, images, request), load, out, workers=workers, batch_size=batch_size,
                    on_gpu=pipe.device.type == "cuda", progress=tell,
                )  # fmt: skip
            else:
                folder = scoring.score(pipe, images, out, request, shard=own, batch_size=batch_size, progress=tell)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"parts that were done are in {out}") from interrupt
    _say(folder, method)


def _scores(
    place: tuple[Path, str, str | None, str | None], data: str, how: DataOptions, request: ScoreRequest
) -> Scores:
    """The work of an actor."""
    from fastdiff.data.opening import open_images
    from fastdiff.generation.score import Scores

    return Scores.of(load_pipeline(*place), open_images(data, how), request)


def _say(folder: JobFolder, method: str) -> None:
    from fastdiff.generation.score import read_scores
    from fastdiff.likelihood import merge

    done, job = folder.listed(), folder.job
    images = sum(part.num for part in done)
    typer.echo(f"{images:,} of {job.num:,} images in {len(done):,} of {len(job):,} parts: {folder.path}")
    if done and method != "encode":
        found = merge([read_scores(folder)[1]])
        typer.echo(f"{found.mean:.4f} ± {found.standard_error:.4f} bits/dim ({found.num:,} images)")
