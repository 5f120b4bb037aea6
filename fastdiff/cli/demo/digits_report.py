"""What the demonstration shows: its pictures, and the table it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastdiff.cli.progress import duration
from fastdiff.evaluation import metrics
from fastdiff.files import figures
from fastdiff.files.data import ImageData
from fastdiff.likelihood import Bound
from fastdiff.nets.unet import UNet
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.callbacks import SamplingStep
from fastdiff.sampling.runner import sample

__all__ = ["WRITTEN", "Outcome", "draw", "report"]

GRID_IMAGES = 96
FRAMES_DRAWN = 10
FRAMES_MOVING = 50

WRITTEN = (
    ("samples.png", "samples, labelled"),
    ("denoising.png", "how they come out of the noise"),
    ("denoising.gif", "the same, moving"),
    ("nearest.png", "samples beside the training images nearest to them"),
    ("loss.png", "the training loss"),
    ("report.html", "how it trained: samples, losses, scores of held-out digits"),
    ("pictures", "samples while it trained"),
    ("bound.png", "where the bits go, by timestep"),
    ("metrics.json", "all numbers"),
    ("evaluation.png", "samples against the training images; evaluation.json and .csv have its numbers"),
    ("samples.npz", "all samples, arr_0 uint8, rounded to the 17 values"),
    ("generated", "the same as they were sampled, for fastdiff generate, gather and evaluate"),
    ("checkpoints", "the model, for fastdiff sample and likelihood"),
)
"""Name and contents of everything that the demonstration writes for its reader."""

NOTES = (
    "A pixel of these digits has 17 values, not 256, so bits/dim do not compare with those of other data. Recognised: "
    "a classifier trained on real digits (right on {accuracy:.1%} of the held-out ones) gives 0.8 or more to one of "
    "them; strictly, by one that also learned to reject scrambled digits. Smaller sets have larger Fréchet distances."
)
"""Printed below the table."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What there is to draw.

    Attributes:
        unet: The trained network.
        table: The sampler.
        seed: Of the samples.
        train: The training images.
        samples: [N, C, H, W] in [-1, 1]; samples 0 to N - 1 of the seed.
        names: What a classifier takes each for, and the probability.
        bound: Of the held-out images.
        history: Entries of the training log: "step", "loss".
        training: Numbers of the training, as in `metrics.json`.
    """

    unet: UNet
    table: CoefficientTable
    seed: int
    train: ImageData
    samples: Tensor
    names: Sequence[tuple[int, float]]
    bound: Bound
    history: Sequence[dict[str, float]]
    training: dict[str, Any]


def draw(out: Path, outcome: Outcome) -> None:
    """Write all pictures into the folder `out`.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    samples, table, training = outcome.samples, outcome.table, outcome.training
    shown = min(GRID_IMAGES, len(samples))
    figures.plot_samples(
        out / "samples.png",
        samples[:shown],
        labels=[f"{digit} ({probability:.0%})" for digit, probability in outcome.names[:shown]],
        title=f"Digits sampled by the model: the first {shown} of {len(samples):,}, none left out",
        note="Below each, what a classifier trained on real digits takes it for, and how sure it is.",
    )
    _draw_nearest(out / "nearest.png", outcome.train, samples)
    ids = _one_of_each(outcome.names)
    frames = _frames(outcome, ids)
    figures.plot_denoising(
        out / "denoising.png",
        frames.pick(FRAMES_DRAWN),
        labels=[f"sample {i}" for i in ids],
        title="From noise to digits",
        note=f"Each row is one sample on its way through the {len(table)} steps of {table.name}, time to the right.",
    )
    figures.write_denoising_gif(out / "denoising.gif", frames.pick(FRAMES_MOVING))
    figures.plot_loss(
        out / "loss.png",
        [entry["step"] for entry in outcome.history],
        [entry["loss"] for entry in outcome.history],
        title=f"Training loss, {training['parameters']:,} parameters",
        note=f"{training['steps']:,} steps of {training['settings']['batch_size']} images in "
        f"{duration(training['seconds'])}, {training['images_per_second']:,.0f} images/s",
    )
    bound, means = outcome.bound, outcome.bound.summary()
    levels = outcome.train.scaling.levels or 256
    figures.plot_bound(
        out / "bound.png",
        bound.terms.mean(dim=0).numpy(),
        title=f"Held-out digits: {means['bits_per_dim']:.3f} ± {means['standard_error']:.3f} bits/dim",
        note=f"= prior {means['prior']:.1e} + KL terms {means['kl']:.3f} + decoder {means['decoder']:.3f}; "
        f"{len(bound.total)} images whose pixels have {levels} values (a uniform guess: {np.log2(levels):.2f})",
    )


def _draw_nearest(path: Path, train: ImageData, samples: Tensor, rows: int = 8, count: int = 3) -> None:
    reference = train.to_model(train.images)
    distances, indices = metrics.nearest_neighbours(samples.numpy(), reference.numpy(), count)
    rows = min(rows, len(samples))
    closest = np.argsort(distances[:, 0], kind="stable")[:rows].tolist()
    figures.plot_nearest(
        path,
        samples,
        reference[torch.from_numpy(indices)],
        distances,
        groups=[
            (f"the {rows} closest of all {len(samples):,} samples", closest),
            (f"the first {rows} samples", list(range(rows))),
        ],
        title="Samples (framed) and the training images nearest to them",
        note="Distances are Euclidean, over pixels in [-1, 1]. A copy would have distance 0.",
    )


def _one_of_each(names: Sequence[tuple[int, float]]) -> list[int]:
    """Numbers of ten samples, the first of each digit that is recognised; others where there is none."""
    first: dict[int, int] = {}
    for index, (digit, probability) in enumerate(names):
        if probability >= 0.8:
            first.setdefault(digit, index)
    chosen = [first[digit] for digit in sorted(first)]
    spare = (index for index in range(len(names)) if index not in chosen)
    return [*chosen, *(next(spare) for _ in range(min(10, len(names)) - len(chosen)))]


def _frames(outcome: Outcome, ids: list[int]) -> figures.DenoisingFrames:
    """The way to these samples. They are those of the grid: noise depends on seed and sample id alone."""
    states: list[Tensor] = []
    predictions: list[Tensor] = []

    def keep(step: SamplingStep) -> None:
        assert step.prediction is not None
        states.append(step.x.cpu().clone())
        predictions.append(step.prediction.cpu().clone())

    table = outcome.table
    sample(
        outcome.unet,
        table,
        shape=(len(ids), *outcome.train.shape),
        seed=outcome.seed,
        sample_ids=ids,
        progress=False,
        callback=keep,
    )
    times = [*(int(t) for t in table["t"][1:]), -1]
    noise = np.asarray(table.sigmas)[1:].tolist()
    return figures.DenoisingFrames(times, noise, torch.stack(states), torch.stack(predictions))


def report(console: Console, out: Path, result: dict[str, Any]) -> None:
    """Print the numbers of `metrics.json` as a short table, and what was written."""
    score, speed = result["likelihood"], result["sampling"]
    training, frechet, copies = result["training"], result["frechet_distance"], result["copies"]
    plain, strict = result["classifier"], result["strict_classifier"]
    shares, real = plain["samples"]["shares"], plain["held_out"]["shares"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("model")
    table.add_column("held-out digits")
    table.add_column("for comparison")
    table.add_row(
        "bits/dim",
        f"{score['bits_per_dim']:.3f} ± {score['standard_error']:.3f}",
        "",
        f"independent pixels {score['independent_pixels_bits_per_dim']:.3f}",
    )
    table.add_row("  KL terms", f"{score['kl']:.3f}", "", f"uniform guess {score['uniform_bits_per_dim']:.3f}")
    table.add_row("  decoder, prior", f"{score['decoder']:.3f}, {score['prior']:.1e}", "", "")
    for name, judge in (("recognised", plain), ("  strictly", strict)):
        table.add_row(
            name,
            f"{judge['samples']['recognised']:.1%}",
            f"{judge['held_out']['recognised']:.1%}",
            f"scrambled digits {judge['scrambled']['recognised']:.1%}",
        )
    table.add_row(
        "share of a digit", f"{min(shares):.1%} to {max(shares):.1%}", f"{min(real):.1%} to {max(real):.1%}", ""
    )
    table.add_row(
        "Fréchet distance",
        f"{frechet['samples']:.3f}",
        f"{frechet['held_out']:.3f}",
        f"as many samples {frechet['as_many_samples_as_held_out']:.3f}",
    )
    for name in ("precision", "coverage"):
        table.add_row(name, *(f"{result['evaluation'][of][name]:.1%}" for of in ("samples", "held_out")), "")
    table.add_row(
        "nearest in training",
        f"{copies['median_samples']:.2f}, least {copies['closest_sample']:.2f}",
        f"{copies['median_held_out']:.2f}, least {copies['closest_held_out']:.2f}",
        f"copies {copies['exact_copies']}",
    )
    table.add_row("training", f"{training['images_per_second']:,.0f} images/s", "", duration(training["seconds"]))
    table.add_row("sampling", f"{speed['images_per_second']:,.0f} images/s", "", f"{speed['steps']} steps each")
    table.add_row(
        "in all", duration(result["total_seconds"]), "", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB of memory"
    )
    console.print()
    console.print(table)
    console.print(NOTES.format(accuracy=plain["held_out"]["accuracy"]), style="dim")
    console.print()
    for name, what in WRITTEN:
        console.print(f"{out / name}  [dim]{what}[/dim]", soft_wrap=True, highlight=False)
    console.print("\nNext:")
    for command in (
        f"fastdiff sample {out} --num 64 --sampler ddim --steps 25 --out grid.png",
        f"fastdiff likelihood {out} digits",
        f"fastdiff compare {out} {out / 'compared'}",
        f"fastdiff info model {out}",
    ):
        console.print(f"  {command}", soft_wrap=True, highlight=False)
