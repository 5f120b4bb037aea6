"""The command `fastdiff`: demo, train, sample, likelihood, convert, info.

Nothing heavy is imported before a command needs it, so that `fastdiff --help` answers at once.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

import fastdiff
from fastdiff.cli_convert import convert
from fastdiff.cli_info import info_app
from fastdiff.cli_options import key_values
from fastdiff.cli_train import train

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.data import ImageData
    from fastdiff.likelihood import Bound
    from fastdiff.pipeline import Pipeline
    from fastdiff.sampling import SamplingStep

__all__ = ["app", "main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""


class Commands(TyperGroup):
    """Turns what goes wrong into one line: `error: ...`, exit code 1; after Ctrl-C, exit code 130."""

    # Typer brings its own copy of click's classes in some versions, and uses click's in others.
    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _plain_warnings():
            try:
                return super().invoke(ctx)
            except (ValueError, RuntimeError, OSError, ImportError) as error:
                # Typer's own control flow is made of RuntimeErrors.
                if ctx.params.get("debug") or isinstance(error, typer.Exit | typer.Abort):
                    raise
                typer.echo(f"error: {_message(error)}", err=True)
                raise typer.Exit(1) from error
            except KeyboardInterrupt as interrupt:
                said = f"{interrupt}; the same command goes on from there" if str(interrupt) else "stopped"
                typer.echo(f"\n{said}", err=True)
                raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    cls=Commands,
    name="fastdiff",
    help="Train, sample and score denoising diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.", show_default=True)
]
ModelArgument = Annotated[Path, typer.Argument(help="A model folder, or the folder of a training run.")]
WeightsOption = Annotated[
    str | None, typer.Option(help="ema (averaged) or raw; what the model was saved with, if left out.")
]


def main() -> None:
    """Entry point of the command line."""
    app(prog_name="fastdiff")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastdiff {fastdiff.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Read the options that stand before the command; `Commands` looks at "debug"."""


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="Which: digits.")] = "digits",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another model and other samples.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes; the digits are bad.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the training that the folder holds, if any.")] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train on handwritten digits, sample, score, and draw what came out: a few minutes on two cores."""
    from fastdiff.schedule import nearest_name

    if name != "digits":
        raise ValueError(f"unknown demo {name!r}: {nearest_name(name, ['digits'])}")
    from fastdiff.demo import DemoConfig, run_demo
    from fastdiff.environment import resolve_device

    config = DemoConfig.quick(seed) if quick else DemoConfig(seed=seed)
    run_demo(out, config, fresh=fresh, device=resolve_device(device))


app.command()(train)


@app.command()
def sample(
    model: ModelArgument,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many images.")] = 64,
    sampler: Annotated[str, typer.Option(help="Its name; `fastdiff info samplers` lists them.")] = "ddim",
    steps: Annotated[
        int | None,
        typer.Option(help="Network evaluations; if left out, all timesteps for ddpm, at most 50 for others."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Of the sampler, as name=value: eta=0.5. May be repeated.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="A grid (.png), an archive (.npz: arr_0 uint8 NHWC) or a folder of PNGs."),
    ] = Path("samples.png"),
    seed: Annotated[int, typer.Option(min=0, help="Sample i of a seed is the same image in any batch.")] = 0,
    start_id: Annotated[int, typer.Option(min=0, help="Number of the first sample.")] = 0,
    label: Annotated[
        str | None,
        typer.Option(help="For networks with classes: numbers such as 3 or 0,1,2, taken in turn. All, if left out."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images at a time; changes nothing but speed and memory.")
    ] = 64,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Sample images from a model into a picture, a folder or an archive."""
    _check_target(out)
    options = key_values(option or [])
    pipe = _load(model, weights, device)
    from fastdiff import samplers
    from fastdiff.pipeline import default_steps
    from fastdiff.progress import Bars

    steps = default_steps(sampler, pipe.diffusion) if steps is None else steps
    table = samplers.build(sampler, pipe.diffusion, steps, **options)
    labels = _labels_for(pipe, label, num)
    with Bars() as bars:
        update = bars.counting(f"sampling, {table.name}, {len(table)} rows", num)
        images = _sample_batches(pipe, table, num, batch_size, seed, start_id, labels, update)
    typer.echo(f"{num} images: {_write_samples(out, images, start_id, labels)}")


@app.command()
def likelihood(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(help="digits, a folder of images, or a .npz or .npy file.")],
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
    figure: Annotated[Path | None, typer.Option(help="Draw the bound by timestep into this .png.")] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score images in bits/dim: the variational bound on their negative log-likelihood."""
    if figure is not None and figure.suffix.lower() != ".png":
        raise ValueError(f"--figure writes a .png, got {str(figure)!r}")
    pipe = _load(model, weights, device)
    from fastdiff import data as sources

    chosen: Any = split if split is not None or data != "digits" else "test"
    pixels: Any = channels
    arrangement: Any = layout
    images = sources.load(data, split=chosen, size=size, channels=pixels, layout=arrangement)
    _check_scorable(pipe, images)
    if num is not None and num < len(images):
        images = images.take([i * len(images) // num for i in range(num)])
    bound = _bound(pipe, images, seed, batch_size)
    numbers = _likelihood_numbers(pipe, images, bound, seed)
    _print_likelihood(numbers)
    if json_file is not None:
        _write_text(json_file, json.dumps(numbers | {"terms": bound.terms.mean(dim=0).tolist()}, indent=2) + "\n")
        typer.echo(str(json_file))
    if figure is not None:
        _draw_bound(figure, numbers, bound)
        typer.echo(str(figure))


app.command()(convert)
app.add_typer(info_app, name="info")


def _load(model: Path, weights: str | None, device: str) -> Pipeline:
    from fastdiff.environment import resolve_device
    from fastdiff.pipeline import Pipeline

    kind: Any = weights
    return Pipeline.from_pretrained(model, device=resolve_device(device), weights=kind)


def _labels_for(pipe: Pipeline, text: str | None, num: int) -> Tensor | None:
    """One label per sample, or None for a network without classes."""
    import torch

    num_classes = pipe.unet.config.num_classes
    if num_classes is None:
        if text is not None:
            raise ValueError("this network has no classes: leave out --label")
        return None
    try:
        chosen = list(range(num_classes)) if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--label takes whole numbers, such as 3 or 0,1,2, got {text!r}") from None
    if min(chosen) < 0 or max(chosen) >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {text}")
    return torch.tensor([chosen[i % len(chosen)] for i in range(num)])


def _sample_batches(
    pipe: Pipeline,
    table: fastdiff.CoefficientTable,
    num: int,
    batch_size: int,
    seed: int,
    start_id: int,
    labels: Tensor | None,
    update: Any,
) -> Tensor:
    done = 0

    def advance(step: SamplingStep) -> None:
        nonlocal done
        count = step.x.shape[0]
        update(done + count * (step.row + 1) / step.num_rows)
        if step.row + 1 == step.num_rows:
            done += count

    return pipe.sample(
        num,
        sampler=table,
        seed=seed,
        sample_ids=range(start_id, start_id + num),
        labels=labels,
        batch_size=batch_size,
        callback=advance,
    ).cpu()


def _check_target(out: Path) -> None:
    if out.suffix.lower() not in ("", ".png", ".npz"):
        raise ValueError(f"--out takes a .png, a .npz or a folder, got {str(out)!r}")
    if out.suffix == "" and out.is_file():
        raise ValueError(f"--out {str(out)!r} is a file: give a folder, or a name that ends in .png or .npz")


def _write_samples(out: Path, images: Tensor, start_id: int, labels: Tensor | None) -> Path:
    from fastdiff.images import write_grid, write_images, write_npz

    if out.suffix.lower() == ".png":
        return write_grid(out, images, labels=labels)
    if out.suffix.lower() == ".npz":
        return write_npz(out, images, labels)
    write_images(out, images, start=start_id)
    return out


def _check_scorable(pipe: Pipeline, images: ImageData) -> None:
    shape, levels = pipe.image_shape, pipe.scaling.levels
    if images.shape != shape:
        ours, theirs = ("x".join(map(str, part)) for part in (shape, images.shape))
        raise ValueError(
            f"the model was trained on images of {ours} (channels x height x width), {images.source} has {theirs}: "
            "for a folder, --size and --channels convert them"
        )
    if images.scaling.levels != levels:
        ours, theirs = ("continuous values" if n is None else f"{n} values" for n in (levels, images.scaling.levels))
        raise ValueError(
            f"the model was trained on pixels of {ours}, those of {images.source} have {theirs}: bits/dim count "
            "values, so the two must agree"
        )
    if pipe.unet.config.num_classes is not None and images.labels is None:
        raise ValueError(f"the network has classes, and {images.source} has no labels")


def _bound(pipe: Pipeline, images: ImageData, seed: int, batch_size: int) -> Bound:
    from fastdiff.progress import Bars

    with Bars() as bars:
        update = bars.counting("scoring", len(images))
        return pipe.likelihood(
            images.to_model(images.images),
            labels=None if pipe.unet.config.num_classes is None else images.labels,
            seed=seed,
            batch_size=batch_size,
            on_progress=lambda done, total: update(len(images) * done / total),
        )


def _likelihood_numbers(pipe: Pipeline, images: ImageData, bound: Bound, seed: int) -> dict[str, Any]:
    from fastdiff.environment import versions

    return {
        **bound.summary(),
        "num_images": len(images),
        "levels": pipe.scaling.levels,
        "timesteps": pipe.diffusion.num_timesteps,
        "evaluations": bound.evaluations,
        "data": images.source,
        "model": pipe.metadata["path"],
        "step": pipe.metadata["step"],
        "weights": pipe.metadata["weights"],
        "seed": seed,
        "versions": versions(),
    }


def _print_likelihood(numbers: dict[str, Any]) -> None:
    levels = numbers["levels"]
    unit = f"a pixel has {levels} values" if levels else "the density of continuous values"
    images = "1 image" if numbers["num_images"] == 1 else f"{numbers['num_images']:,} images"
    typer.echo(f"{numbers['bits_per_dim']:.4f} ± {numbers['standard_error']:.4f} bits/dim ({images}; {unit})")
    typer.echo(f"  prior    {numbers['prior']:.3e}")
    typer.echo(f"  KL terms {numbers['kl']:.4f}")
    typer.echo(f"  decoder  {numbers['decoder']:.4f}")


def _draw_bound(path: Path, numbers: dict[str, Any], bound: Bound) -> None:
    from fastdiff.figures import plot_bound

    plot_bound(
        path,
        bound.terms.mean(dim=0).numpy(),
        title=f"{numbers['data']}: {numbers['bits_per_dim']:.3f} ± {numbers['standard_error']:.3f} bits/dim",
        note=f"= prior {numbers['prior']:.1e} + KL terms {numbers['kl']:.3f} + decoder {numbers['decoder']:.3f}; "
        f"{numbers['num_images']:,} images",
    )


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _message(error: BaseException) -> str:
    """What an exception says, with the file's name where the system reports one."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as one line each, without the place in the code."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
