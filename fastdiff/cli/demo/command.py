"""`fastdiff demo`: train, sample, score, and draw what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff.cli.options import DeviceOption

__all__ = ["demo"]


def demo(
    name: Annotated[str, typer.Argument(help="Which: digits, or swiss-roll in two dimensions.")] = "digits",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; out/demo or out/swiss-roll, if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another model and other samples.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes; the digits are bad.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the training that the folder holds, if any.")] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train, sample, score, and draw what came out: handwritten digits, a few minutes on two cores.

    The swiss roll takes less than a minute, on the CPU, and always trains anew.
    """
    from fastdiff.process.checks import nearest_name

    if name not in ("digits", "swiss-roll"):
        raise ValueError(f"unknown demo {name!r}: {nearest_name(name, ['digits', 'swiss-roll'])}")
    if name == "swiss-roll":
        from fastdiff.cli.demo.swiss_roll import SwissRollConfig, run_swiss_roll

        run_swiss_roll(
            out or Path("out/swiss-roll"), SwissRollConfig.quick(seed) if quick else SwissRollConfig(seed=seed)
        )
        return
    from fastdiff.cli.demo.digits import DemoConfig, run_demo
    from fastdiff.cli.environment import resolve_device

    config = DemoConfig.quick(seed) if quick else DemoConfig(seed=seed)
    run_demo(out or Path("out/demo"), config, fresh=fresh, device=resolve_device(device))
