"""`fastdiff generate` and `fastdiff gather`: many samples, in parts that processes share out, and then in one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.cli.options import (
    DeviceOption,
    MemoryOption,
    ModelArgument,
    PrecisionOption,
    SamplerOptions,
    StepsOption,
    TableOption,
    ThreadsOption,
    WeightsOption,
    blaming,
    key_values,
    load_pipeline,
)
from fastdiff.cli.output import check_free, check_writable
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, shown

if TYPE_CHECKING:
    from fastdiff.generation.generate import Request
    from fastdiff.generation.shards import Shard
    from fastdiff.pipeline import Pipeline

__all__ = [
    "EngineOption",
    "PartSizeOption",
    "ShardOption",
    "WorkersOption",
    "check_engine",
    "counted",
    "gather",
    "generate",
    "shard_of",
]

ENGINES = ("local", "ray")

PartSizeOption = Annotated[int, typer.Option(min=1, help="Images of a part.")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        help="Of several processes, which this is: 0/4 to 3/4. Read from torchrun, a Slurm array or a Kubernetes job "
        "if left out."
    ),
]
EngineOption = Annotated[str, typer.Option(help="local: this process. ray: actors of Ray Data, here or on a cluster.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="With --engine ray: actors; one a core or GPU.")]


def generate(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The job's folder; the same command goes on with what is missing in it.")],
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many images.")],
    sampler: Annotated[str, typer.Option(help="`fastdiff info samplers` lists them.")] = "ddim",
    steps: StepsOption = None,
    option: SamplerOptions = None,
    table: TableOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Image i of a seed is the same in any job.")] = 0,
    labels: Annotated[
        str | None,
        typer.Option(help="Numbers or names such as 3 or cat,dog, taken in turn, or a .npy with one for each image."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of classifier-free guidance, for a network with a null class: 1 is none."),
    ] = None,
    null_label: Annotated[
        str | None, typer.Option(help="The null class, number or name, where the model does not say.")
    ] = None,
    format: Annotated[str, typer.Option(help="Of the parts: npz, png, zip (EDM's) or parquet.")] = "npz",
    part_size: PartSizeOption = 512,
    shard: ShardOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    check: Annotated[
        int | None,
        typer.Option("--verify", min=1, help="Sample so many images again and compare, in place of generating."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images at a time; changes speed and memory, and no bit of the engine's images.")
    ] = 64,
    precision: PrecisionOption = None,
    memory: MemoryOption = "normal",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Sample many images in parts, in any number of processes; a command that was stopped goes on where it was."""
    options = key_values(option or [])
    check_engine(engine, shard, workers)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder")

    from fastdiff.sampling.tables import read_table

    own = shard_of(shard)
    if table is not None and (sampler != "ddim" or steps is not None or options):
        raise ValueError("--table is the whole sampler: leave out --sampler, --steps and --option")
    chosen: Any = sampler if table is None else read_table(table, "--table")
    classes = _labels(labels)
    pipe = load_pipeline(model, device, weights, precision, memory)
    check_writable(out)

    from fastdiff.generation.generate import Request

    request = Request(
        num, chosen, steps, options, seed, classes, guidance, null_label, format=format, part_size=part_size
    )
    with blaming("--option", option):
        if check is not None:
            _verify(pipe, out, request, check)
        elif engine == "ray":
            _by_ray(pipe, model, weights, out, request, workers, batch_size)
        else:
            _here(pipe, out, request, own, batch_size)


def gather(
    job: Annotated[Path, typer.Argument(help="The folder of a finished `fastdiff generate`.")],
    out: Annotated[
        Path, typer.Argument(help="A .npz (arr_0 uint8 NHWC, arr_1 labels), a .zip (EDM's), a .parquet or a folder.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that lies there.")] = False,
) -> None:
    """Put the parts of a job together into one file, or a folder of PNGs."""
    from fastdiff.generation import formats
    from fastdiff.generation.folder import JobFolder
    from fastdiff.generation.generate import gather as put_together
    from fastdiff.generation.job import Job

    if out.suffix:
        check_free(out, (".npz", ".zip", ".parquet"), overwrite=overwrite, option="OUT")
        check_writable(out.parent, out.name)
    elif out.exists():
        raise ValueError(f"{out} exists already: give the name of a new folder, or of a file")
    about = Job.read(job)
    if about.kind != "generate":
        raise ValueError(f"{job} holds scores, and no images")
    put_together(JobFolder(job, about, formats.SUFFIXES[about.about["format"]]), out)
    typer.echo(f"{about.num:,} images: {out}")


def _here(pipe: Pipeline, out: Path, request: Request, shard: Any, batch_size: int) -> None:
    from fastdiff.generation import generate as generation

    try:
        with counted("generating") as tell:
            folder = generation.generate(pipe, out, request, shard=shard, batch_size=batch_size, progress=tell)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"parts that were done are in {out}") from interrupt
    _say(folder)


def check_engine(engine: str, shard: str | None, workers: int | None) -> None:
    """Raise ValueError for an unknown engine, or options that are another engine's."""
    if engine not in ENGINES:
        raise ValueError(f"unknown --engine {shown(engine)}: {nearest_name(engine, ENGINES)}")
    if engine == "ray" and shard is not None:
        raise ValueError("--shard is for processes of their own: Ray shares the parts out itself")
    if workers is not None and engine != "ray":
        raise ValueError("--workers are Ray's: give --engine ray")


def shard_of(text: str | None) -> Shard | None:
    """The shard that was typed; None where the environment says it."""
    from fastdiff.generation.shards import Shard

    return None if text is None else Shard.parse(text)


@contextmanager
def counted(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told how many of how many images are done."""
    from fastdiff.cli.progress import Bars

    with Bars() as bars:
        update: Any = None

        def tell(done: int, total: int) -> None:
            nonlocal update
            if total and update is None:
                update = bars.counting(name, total)
            if update is not None:
                update(done)

        yield tell


def _by_ray(
    pipe: Pipeline, model: Path, weights: str | None, out: Path, request: Request, workers: int | None, batch_size: int
) -> None:
    from functools import partial

    from fastdiff.generation.generate import Samples
    from fastdiff.generation.ray_engine import run_by_ray

    load = partial(_samples, model.absolute(), str(pipe.device), weights, pipe.precision, pipe.memory, request)
    with counted("generating") as tell:
        folder = run_by_ray(
            Samples.of(pipe, request), load, out, workers=workers, batch_size=batch_size,
            on_gpu=pipe.device.type == "cuda", progress=tell,
        )  # fmt: skip
    _say(folder)


def _samples(
    model: Path, device: str, weights: str | None, precision: str | None, memory: str, request: Request
) -> Any:
    """The work of an actor."""
    from fastdiff.generation.generate import Samples

    return Samples.of(load_pipeline(model, device, weights, precision, memory), request)


def _say(folder: Any) -> None:
    done, job = folder.listed(), folder.job
    images = sum(part.num for part in done)
    typer.echo(f"{images:,} of {job.num:,} images in {len(done):,} of {len(job):,} parts: {folder.path}")
    if len(done) == len(job):
        typer.echo(f"next: fastdiff gather {folder.path} samples.npz")


def _verify(pipe: Pipeline, out: Path, request: Request, count: int) -> None:
    import numpy as np

    from fastdiff.generation.generate import verify

    chosen = np.random.default_rng().choice(request.num, min(count, request.num), replace=False)
    wrong = verify(pipe, out, request, sorted(chosen.tolist()))
    for found in wrong:
        typer.echo(f"image {found.id}: {found.pixels} values differ, by up to {found.largest} of 255")
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(chosen)} images are other than this machine makes them")
    typer.echo(f"{len(chosen)} images sampled again: all are the same")


def _labels(text: str | None) -> Any:
    if text is None:
        return None
    if text.lower().endswith(".npy"):
        from fastdiff.files.images import read_arrays

        return read_arrays(Path(text), ("arr_0",))["arr_0"]
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise ValueError(f"{spelt('labels')} must be numbers or names with commas between, got {shown(text)}")
    return names
