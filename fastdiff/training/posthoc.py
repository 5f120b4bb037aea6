"""Averages of any width, made of the snapshots of a run after it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdiff.files.checkpoint import load_model, read_config, save_model
from fastdiff.files.snapshots import Snapshot, list_snapshots, read_snapshot
from fastdiff.files.weights import average_prefix
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import shown, whole_number
from fastdiff.training.profiles import MAX_WIDTH, Combination, checked_width, combine
from fastdiff.training.resume import identity

__all__ = ["Reconstruction", "reconstruct", "save_average"]

# Widths that are tried to say which could be had.
_TRIED = np.linspace(0.005, MAX_WIDTH - 0.0005, 120)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A power-function average of a run.

    Attributes:
        tensors: float32, by the parameters' names.
        step: Steps taken at it.
        width: Of its profile.
        error: Of the profile; see `fastdiff.training.profiles.Combination`.
        num_snapshots: That it was made of.
    """

    tensors: dict[str, Tensor]
    step: int
    width: float
    error: float
    num_snapshots: int


def reconstruct(
    run_folder: str | Path, width: float, *, step: int | None = None, max_error: float = 0.1
) -> Reconstruction:
    """The average of a width, as if it had been tracked, from the snapshots of a run.

    Args:
        run_folder: With `checkpoints` and `snapshots`, of a training with `snapshot_every`.
        width: In (0, 12^-1/2), relative to `step`.
        step: Steps taken; of the newest snapshot when None.
        max_error: Of its profile, as `Combination.error`; what is off by more is refused.

    Raises:
        ValueError: an argument is out of range, there are no snapshots, they are of another run, one is damaged, or
            the width cannot be made of them: the message says how far it is off, and which widths can.

    Source: Karras et al. (2024), arXiv:2312.02696, section 3.2 and appendix C.
    """
    width = checked_width(spelt("width"), width)
    if isinstance(max_error, bool) or not isinstance(max_error, int | float) or not max_error > 0:
        raise ValueError(f"{spelt('max_error')} must be a positive number, got {shown(max_error)}")
    snapshots = _snapshots(Path(run_folder))
    newest = snapshots[-1]
    # Averages that began anew remember nothing of those before.
    snapshots = [snapshot for snapshot in snapshots if snapshot.since == newest.since]
    step = newest.step if step is None else whole_number(spelt("step"), step, low=1, strict=True)
    if not newest.since < step <= newest.step:
        raise ValueError(
            f"{spelt('step')} must be from {newest.since + 1:,} to {newest.step:,}, the steps that the snapshots in "
            f"{run_folder} are of, got {step:,}"
        )
    made = _combined(snapshots, step, width)
    if made.error > max_error:
        raise ValueError(_too_far(snapshots, step, width, made.error, max_error))
    used = np.count_nonzero([weights.any() for weights in _by_snapshot(snapshots, made)])
    return Reconstruction(_sum(snapshots, made), step, width, made.error, int(used))


def save_average(run_folder: str | Path, folder: str | Path, average: Reconstruction) -> Path:
    """Write a model folder with an average of a run; see `save_model` for what it raises."""
    model = load_model(run_folder)
    return save_model(
        folder,
        model.unet,
        model.diffusion,
        model.scaling,
        weights="ema",
        step=average.step,
        tensors=average.tensors,
        training=(model.metadata["training"] or {}) | {"average": f"power:{average.width!r}"},
        data=model.metadata["data"],
    )


def _snapshots(run_folder: Path) -> list[Snapshot]:
    if not run_folder.is_dir():
        raise ValueError(f"{run_folder} is not the folder of a training run")
    checkpoint = load_model(run_folder).metadata["path"]
    found = [read_snapshot(path) for _, path in list_snapshots(run_folder)]
    if not found:
        raise ValueError(
            f"{run_folder} has no snapshots of averages, which a training writes with {advised('snapshot_every', 1000)}"
        )
    run = identity(read_config(checkpoint))
    for snapshot in found:
        if snapshot.run != run:
            raise ValueError(
                f"{snapshot.path} is of another run than {checkpoint}: move the files that do not belong here elsewhere"
            )
    return found


def _combined(snapshots: Sequence[Snapshot], step: int, width: float) -> Combination:
    steps = [snapshot.step for snapshot in snapshots for _ in snapshot.widths]
    return combine(steps, [stored for snapshot in snapshots for stored in snapshot.widths], step, width)


def _by_snapshot(snapshots: Sequence[Snapshot], made: Combination) -> list[np.ndarray]:
    """The weights of each snapshot's averages."""
    ends = np.cumsum([len(snapshot.widths) for snapshot in snapshots])
    return np.split(made.weights, ends[:-1])


def _sum(snapshots: Sequence[Snapshot], made: Combination) -> dict[str, Tensor]:
    """The averages times their weights, added up in float64, one file at a time."""
    total: dict[str, Tensor] = {}
    for snapshot, weights in zip(snapshots, _by_snapshot(snapshots, made), strict=True):
        if not weights.any():
            continue
        tensors = snapshot.tensors()
        for width, weight in zip(snapshot.widths, weights.tolist(), strict=True):
            _add(total, tensors, average_prefix("power", width), weight)
    return {name: value.to(torch.float32) for name, value in total.items()}


def _add(total: dict[str, Tensor], tensors: Mapping[str, Tensor], prefix: str, weight: float) -> None:
    for name, value in tensors.items():
        if name.startswith(prefix):
            scaled = value.double() * weight
            own = name.removeprefix(prefix)
            total[own] = scaled if own not in total else total[own].add_(scaled)


def _too_far(snapshots: Sequence[Snapshot], step: int, width: float, error: float, max_error: float) -> str:
    near = [float(other) for other in _TRIED if _combined(snapshots, step, float(other)).error <= max_error]
    widths = " and ".join(map(str, snapshots[0].widths))
    hint = (
        f"widths from about {min(near):.3f} to {max(near):.3f} can be made"
        if near
        else (f"there is no snapshot near enough: give a {advised('step')} of one, such as {snapshots[-1].step}")
    )
    return (
        f"a {spelt('width')} of {width:g} at step {step:,} cannot be made of {len(snapshots)} snapshots of widths "
        f"{widths}: its profile would be off by {error:.0%}, and {max_error:.0%} are allowed; {hint}"
    )
