"""`fastdiff sample`: images from a model into a picture, a folder or an archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.cli.options import DeviceOption, ModelArgument, WeightsOption, key_values, load_pipeline
from fastdiff.process.table import CoefficientTable

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.pipeline import Pipeline
    from fastdiff.sampling.runner import SamplingStep

__all__ = ["sample"]


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
    pipe = load_pipeline(model, device, weights)
    from fastdiff import samplers
    from fastdiff.cli.progress import Bars
    from fastdiff.pipeline import default_steps

    steps = default_steps(sampler, pipe.diffusion) if steps is None else steps
    table = samplers.build(sampler, pipe.diffusion, steps, **options)
    labels = _labels_for(pipe, label, num)
    with Bars() as bars:
        update = bars.counting(f"sampling, {table.name}, {len(table)} rows", num)
        images = _sample_batches(pipe, table, num, batch_size, seed, start_id, labels, update)
    typer.echo(f"{num} images: {_write_samples(out, images, start_id, labels)}")


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
    table: CoefficientTable,
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
    from fastdiff.files.images import write_grid, write_images, write_npz

    if out.suffix.lower() == ".png":
        return write_grid(out, images, labels=labels)
    if out.suffix.lower() == ".npz":
        return write_npz(out, images, labels)
    write_images(out, images, start=start_id)
    return out
