"""`fastdiff ema`: an average of any width, made after training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ema"]


def ema(
    run: Annotated[Path, typer.Argument(help="The folder of a training run with --set train.snapshot_every=...")],
    target: Annotated[Path, typer.Argument(help="The model folder to write.")],
    width: Annotated[
        float,
        typer.Option(help="Of the average: the standard deviation of its profile, as a share of the training so far."),
    ],
    step: Annotated[int | None, typer.Option(help="Of the training; of the newest snapshot, if left out.")] = None,
    max_error: Annotated[float, typer.Option(help="How far the average's profile may be off.")] = 0.1,
) -> None:
    """Write a model of averaged weights of any width, as if that average had been kept while it trained."""
    from fastdiff.training.posthoc import reconstruct, save_average

    made = reconstruct(run, width, step=step, max_error=max_error)
    written = save_average(run, target, made)
    files = "1 snapshot" if made.num_snapshots == 1 else f"{made.num_snapshots} snapshots"
    typer.echo(f"width {made.width:g} at step {made.step:,}, of {files}; its profile is off by {made.error:.2%}")
    typer.echo(f"{written}; next: fastdiff sample {written} --out samples.png")
