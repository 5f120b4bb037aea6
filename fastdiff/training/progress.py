"""Where a training stands, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastdiff.training.monitor import Look

__all__ = ["Interval", "TrainProgress", "TrainResult", "metrics"]


@dataclass(frozen=True)
class TrainProgress:
    """Where training stands, at each entry in the log.

    Attributes:
        step: Steps taken.
        num_steps: At which this call of `Trainer.run` ends.
        loss: Mean over the steps since the last entry.
        images_per_second: Over the same steps, without the time for logs and checkpoints.
        seconds_left: At that speed.
        grad_norm: Mean norm of the gradient before clipping.
        learning_rate: Of the latest step.
        loss_by_timestep: Mean loss in ten parts of the timesteps, from the data's end to the noise's; None for a part
            that no timestep fell into.
        look: What was looked at after this step, if anything.
        seconds_looked: What looking has taken since `Trainer.run` began.
    """

    step: int
    num_steps: int
    loss: float
    images_per_second: float
    seconds_left: float
    grad_norm: float
    learning_rate: float
    loss_by_timestep: tuple[float | None, ...] = ()
    look: Look | None = None
    seconds_looked: float = 0.0


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.run` gives.

    Attributes:
        step: Steps taken in all.
        resumed_from: Steps that were taken before this call.
        loss: Of the last entry in the log; None if there was nothing left to do.
        checkpoint: Folder of the newest checkpoint.
        seconds: Duration of this call.
        notes: Sentences for the user, for example that TensorBoard is missing.
        report: `report.html` of the run.
    """

    step: int
    resumed_from: int
    loss: float | None
    checkpoint: Path
    seconds: float
    notes: tuple[str, ...]
    report: Path | None = None


class Interval:
    """Loss and gradient norm of each step since the last entry in the log, and when that was."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.started = time.monotonic()
        self.values: list[Tensor] = []


def metrics(entry: TrainProgress) -> dict[str, float | list[float | None]]:
    """What the log has of an entry."""
    return {
        "loss": entry.loss,
        "grad_norm": entry.grad_norm,
        "learning_rate": entry.learning_rate,
        "images_per_second": entry.images_per_second,
        "loss_by_timestep": list(entry.loss_by_timestep),
    }
