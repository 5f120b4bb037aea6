"""`fastdiff demo`: train, sample, score, and draw what came out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastdiff.cli.options import DeviceOption
from fastdiff.cli.output import check_writable

__all__ = ["demo"]


def demo(
    name: Annotated[str, typer.Argument(help="Which: digits, or swiss-roll in two dimensions.")] = "digits",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; out/demo or out/swiss-roll, if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another model and other samples.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes; the digits are bad.")] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the digits' training: 300 give fair digits in half the time.")
    ] = None,
    process: Annotated[
        str, typer.Option(help="Of the swiss roll: preserving, exploding, edm, flow or vdm; docs/processes.md.")
    ] = "preserving",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the training that the folder holds, if any; implies --overwrite.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the pictures and numbers that lie at --out.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train, sample, score, and draw what came out: handwritten digits, a few minutes on two cores.

    A run of the digits that was stopped goes on, and one that is finished is sampled and scored again. The swiss roll
    takes less than a minute, on the CPU, and always trains anew.
    """
    from fastdiff.process.arguments import spelt
    from fastdiff.process.checks import nearest_name

    if name not in ("digits", "swiss-roll"):
        raise ValueError(f"unknown demo {name!r}: {nearest_name(name, ['digits', 'swiss-roll'])}")
    folder = out or Path("out/demo" if name == "digits" else "out/swiss-roll")
    if name == "swiss-roll":
        if steps is not None:
            raise ValueError(f"{spelt('steps')} belongs to `fastdiff demo digits`: leave it out")
        from fastdiff.cli.demo import swiss_roll

        make = swiss_roll.SwissRollConfig.quick if quick else swiss_roll.SwissRollConfig
        points = make(seed=seed, process=process)
        points.diffusion()
        _check_free(folder, swiss_roll.WRITTEN, overwrite=overwrite or fresh)
        swiss_roll.run_swiss_roll(folder, points)
        return
    if process != "preserving":
        raise ValueError(
            f"{spelt('process')} belongs to `fastdiff demo swiss-roll`, got {process!r}: the digits have one process"
        )
    from fastdiff.cli.demo.digits import DemoConfig, run_demo
    from fastdiff.cli.demo.digits_report import WRITTEN
    from fastdiff.cli.environment import resolve_device
    from fastdiff.training.report import REPORT_FILE

    config = DemoConfig.quick(seed) if quick else DemoConfig(seed=seed)
    config = config if steps is None else replace(config, steps=steps)
    place = resolve_device(device)
    # The report is the training's, which goes on.
    written = [pair for pair in WRITTEN if pair[0] != REPORT_FILE]
    _check_free(folder, written, overwrite=overwrite or fresh)
    run_demo(folder, config, fresh=fresh, device=place)


def _check_free(folder: Path, written: Iterable[tuple[str, str]], *, overwrite: bool) -> None:
    """Raise ValueError unless the demonstration's files can be made in the folder and replace none."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file: give a folder")
    there = [name for name, _ in written if (folder / name).is_file()]
    if there and not overwrite:
        raise ValueError(
            f"--out {folder} holds {there[0]} already: choose another folder, or give --overwrite to make it anew"
        )
    check_writable(folder)
