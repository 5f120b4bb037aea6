"""`fastdiff export`: a model and a sampler in one file, for programs without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff.cli.options import (
    MemoryOption,
    ModelArgument,
    SamplerOptions,
    StepsOption,
    TableOption,
    WeightsOption,
    blaming,
    key_values,
    load_pipeline,
)
from fastdiff.cli.output import check_writable
from fastdiff.process.checks import shown

__all__ = ["export"]


def export(
    model: ModelArgument,
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    sampler: Annotated[str | None, typer.Option(help="`fastdiff info samplers` lists them; ddim, if left out.")] = None,
    steps: StepsOption = None,
    option: SamplerOptions = None,
    table: TableOption = None,
    size: Annotated[
        str | None, typer.Option(help="Of the images, as 64 or 64x48 (height x width); the model's, if left out.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="fast, strict (all convolutions direct) or bfloat16 (weights in half the room)."),
    ] = "fast",
    memory: MemoryOption = "normal",
    weights: WeightsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Write a model and a sampler into one file, from which fastdiff-run samples without Python: docs/standalone.md."""
    options = key_values(option or [])
    if table is not None and (sampler is not None or steps is not None or options):
        raise ValueError("--table is the whole sampler: leave out --sampler, --steps and --option")
    if target.is_dir():
        raise ValueError(f"{target} is a folder: give the name of a file")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists already: choose another name, or --overwrite")
    check_writable(target.parent, target.name)
    pixels = _pixels(size)

    from fastdiff.engine.native import check_precision
    from fastdiff.sampling.tables import read_table, table_of

    check_precision(precision)
    pipe = load_pipeline(model, "cpu", weights, memory=memory)
    named = (sampler or "ddim") if table is None else read_table(table, "--table")
    with blaming("--option", option):
        rows = table_of(named, pipe.diffusion, steps, options)
    written = pipe.export(target, sampler=rows, size=pixels, precision=precision)  # type: ignore[arg-type]
    typer.echo(f"{written.stat().st_size:,} bytes: {written}; next: fastdiff-run {written} --out samples.png")


def _pixels(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--size must be one whole number or two, as 64 or 64x48, got {shown(text)}")
    return int(parts[0]), int(parts[-1])
