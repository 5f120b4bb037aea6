"""`fastdiff sample`: images from a model into a picture, a folder or an archive."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from fastdiff.cli.output import ImageFolder, OverwriteOption, Parts, check_free, check_holds, check_writable
from fastdiff.process.checks import shown
from fastdiff.process.table import CoefficientTable

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.pipeline import Pipeline
    from fastdiff.sampling.callbacks import SamplingStep

__all__ = ["sample"]

LAST_ID = 2**63 - 1
_SUFFIXES = (".png", ".npz", ".npy")


def sample(
    model: ModelArgument,
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, help="How many images; 64, or one per seed, if left out.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="`fastdiff info samplers` lists them; ddim, if left out.")] = None,
    steps: StepsOption = None,
    option: SamplerOptions = None,
    table: TableOption = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="A grid (.png), an archive (.npz: arr_0 uint8 NHWC; .npy: float32 NCHW) or a folder of PNGs. "
            "Where a command was stopped, the same command goes on.",
        ),
    ] = Path("samples.png"),
    overwrite: OverwriteOption = False,
    seed: Annotated[
        str,
        typer.Option(help="Sample i of a seed is the same image in any batch. Several, such as 3,4,5: an image each."),
    ] = "0",
    start_id: Annotated[int, typer.Option(min=0, help="Number of the first sample.")] = 0,
    label: Annotated[
        str | None,
        typer.Option(help="For networks with classes: numbers or names such as 3 or cat,dog, taken in turn; else all."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of classifier-free guidance, for a network with a null class: 1 is none."),
    ] = None,
    null_label: Annotated[
        str | None, typer.Option(help="The null class, number or name, where the model does not say.")
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
    """Sample images from a model into a picture, a folder or an archive."""
    _check_name(out, overwrite)
    seeds, num = _seeds(seed, num, start_id)
    if start_id + num - 1 > LAST_ID:
        raise ValueError(f"--start-id and --num count up to {LAST_ID}, got {start_id} and {num}")
    options = key_values(option or [])
    if table is not None and (sampler is not None or steps is not None or options):
        raise ValueError("--table is the whole sampler: leave out --sampler, --steps and --option")
    pipe = load_pipeline(model, device, weights, precision, memory)
    if pipe.extra_channels:
        commands = "fastdiff edit upscale and fastdiff edit inpaint give it such"
        raise ValueError(f"{model} makes images of other images: {commands}, or Pipeline.sample(condition=...)")

    from fastdiff.sampling.tables import read_table, table_of

    chosen = (sampler or "ddim") if table is None else read_table(table, "--table")
    with blaming("--option", option):
        rows = table_of(chosen, pipe.diffusion, steps, options)
    check_holds(out.suffix.lower() or ".png", pipe.image_shape[0], pipe.scaling.levels)
    turn = _labels_in_turn(pipe, label)
    work = Work(
        pipe=pipe,
        table=rows,
        seed=seeds,
        ids=list(range(start_id, start_id + num)),
        labels=None if turn is None else [turn[i % len(turn)] for i in range(num)],
        guidance=guidance,
        null_label=null_label,
        batch_size=batch_size,
    )
    if guidance is not None:
        # Said before, not after, the first evaluation.
        pipe.classes.null_of(null_label)
    if out.suffix:
        check_writable(out.parent, out.name)
        _sample_into_file(out, work, _about(work, turn, start_id))
    else:
        folder = ImageFolder(out, _about(work, turn, start_id), overwrite=overwrite)
        missing = folder.missing(work.ids)
        if len(missing) < num:
            typer.echo(f"{num - len(missing):,} of {num:,} images are in {out} already")
        try:
            for _ in _sampled(work.part(missing), folder.write):
                pass
        except KeyboardInterrupt as interrupt:
            left = len(folder.missing(work.ids))
            raise KeyboardInterrupt(f"{num - left:,} of {num:,} images are in {out}") from interrupt
    typer.echo(f"{num} images: {out}")


@dataclass(frozen=True, eq=False)
class Work:
    """What there is to sample."""

    pipe: Pipeline
    table: CoefficientTable
    seed: int | list[int]
    ids: list[int]
    labels: list[int] | None
    guidance: float | None
    null_label: str | None
    batch_size: int

    def part(self, places: Sequence[int]) -> Work:
        """The samples at some places of `ids`."""
        labels = None if self.labels is None else [self.labels[place] for place in places]
        seed = self.seed if isinstance(self.seed, int) else [self.seed[place] for place in places]
        return dataclasses.replace(self, seed=seed, ids=[self.ids[place] for place in places], labels=labels)


def _sample_into_file(out: Path, work: Work, about: dict[str, Any]) -> None:
    """Sample into one file. Each batch but the last is put aside, for the same command to go on with."""
    import torch

    parts = Parts(out, about, work.pipe.image_shape)
    missing = parts.missing(work.ids)
    if len(missing) < len(work.ids):
        typer.echo(f"{len(work.ids) - len(missing):,} of {len(work.ids):,} images were sampled before")
    done, last = 0, None

    def keep(images: Tensor, ids: Sequence[int]) -> None:
        nonlocal done
        done += len(ids)
        if done < len(missing):
            parts.write(images, ids)

    try:
        for images in _sampled(work.part(missing), keep):
            last = images
    except KeyboardInterrupt as interrupt:
        kept = len(work.ids) - len(parts.missing(work.ids))
        raise KeyboardInterrupt(
            f"{kept:,} of {len(work.ids):,} images are in {parts.path}" if kept else ""
        ) from interrupt
    labels = None if work.labels is None else torch.tensor(work.labels)
    _write_samples(out, parts.read(work.ids, last), labels, work.pipe)
    parts.delete()


def _about(work: Work, turn: list[int] | None, start_id: int) -> dict[str, Any]:
    """What decides an image of a folder, besides its number."""
    from fastdiff.generation.generate import digest

    about: dict[str, Any] = {
        "weights": digest(work.pipe.unet),
        "shape": list(work.pipe.image_shape),
        "table": work.table.to_dict(),
        "seed": work.seed,
    }
    # Folders of before do not say it.
    if work.pipe.precision is not None:
        about["precision"] = work.pipe.precision
    if work.pipe.memory != "normal":
        about["memory"] = work.pipe.memory
    if turn is not None:
        # By number: a command that starts elsewhere takes its labels in turn from there.
        about["labels"] = [turn[(number - start_id) % len(turn)] for number in range(len(turn))]
        about["guidance"] = work.guidance
        about["null_label"] = None if work.guidance is None else work.pipe.classes.null_of(work.null_label)
    return about


def _labels_in_turn(pipe: Pipeline, text: str | None) -> list[int] | None:
    """The labels that samples take in turn, or None for a network without classes."""
    if pipe.classes.num is None:
        if text is not None:
            raise ValueError("this network has no classes: leave out --label")
        return None
    if text is None:
        return list(range(pipe.classes.num_real))
    return [pipe.classes.number(part.strip(), "--label") for part in text.split(",")]


def _seeds(text: str, num: int | None, start_id: int) -> tuple[int | list[int], int]:
    """One seed, or one per image, and how many images."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < 2**64 for part in parts):
        raise ValueError(f"--seed must be whole numbers from 0 to 2^64 - 1, such as 3 or 3,4,5, got {shown(text)}")
    seeds = [int(part) for part in parts]
    if len(seeds) == 1:
        return seeds[0], 64 if num is None else num
    if num not in (None, len(seeds)):
        raise ValueError(f"--seed has {len(seeds)} seeds, one per image, and --num is {num}: leave out --num")
    if start_id:
        raise ValueError("--start-id goes with a single --seed: each of several seeds has one image")
    return seeds, len(seeds)


def _sampled(work: Work, keep: Callable[[Tensor, Sequence[int]], None]) -> Iterator[Tensor]:
    """The samples, batch by batch, each after `keep` was given it with its numbers."""
    from fastdiff.cli.progress import Bars

    done, total = 0, len(work.ids)
    with Bars() as bars:
        name = f"sampling, {work.table.name}, {len(work.table)} rows"
        update = bars.counting(name, total) if total else None

        def advance(step: SamplingStep) -> None:
            if update is not None:
                update(done + step.x.shape[0] * (step.row + 1) / step.num_rows)

        for first in range(0, total, work.batch_size):
            places = range(first, min(first + work.batch_size, total))
            batch = work.part(places)
            images = work.pipe.sample(
                len(places),
                sampler=work.table,
                seed=batch.seed,
                # An image of a seed of its own is that seed's first.
                sample_ids=batch.ids if isinstance(batch.seed, int) else None,
                labels=batch.labels,
                callback=advance,
                guidance=work.guidance,
                null_label=work.null_label,
            ).cpu()
            done += len(places)
            keep(images, batch.ids)
            yield images


def _check_name(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in ("", *_SUFFIXES):
        raise ValueError(f"--out takes a .png, a .npz, a .npy or a folder, got {shown(str(out))}")
    if out.suffix:
        check_free(out, _SUFFIXES, overwrite=overwrite)
    elif out.exists() and not out.is_dir():
        raise ValueError(f"--out {shown(str(out))} is a file: give a folder, or a name that ends in .png or .npz")


def _write_samples(out: Path, images: Tensor, labels: Tensor | None, pipe: Pipeline) -> None:
    import numpy as np

    from fastdiff.files.atomic import atomic_file
    from fastdiff.files.images import write_grid, write_npz

    suffix = out.suffix.lower()
    if suffix == ".png":
        write_grid(out, images, labels=None if labels is None else [pipe.classes.name(i) for i in labels.tolist()])
    elif suffix == ".npz":
        write_npz(out, images, labels)
    else:
        with atomic_file(out) as file:
            np.save(file, images.float().numpy())
