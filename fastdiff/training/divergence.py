"""Trainings whose loss became NaN: what is said, and what may be changed after it."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from fastdiff.files.atomic import write_text
from fastdiff.files.checkpoint import latest_checkpoint
from fastdiff.process.arguments import advised
from fastdiff.training.config import TrainConfig

__all__ = ["check_finite", "forget_divergence", "has_diverged", "is_advised"]

DIVERGED_FILE = "diverged.json"
"""In a run's folder, from a divergence to the next checkpoint."""


def check_finite(folder: Path, config: TrainConfig, step: int, loss: float, norm: float) -> None:
    """Stop a training whose loss or gradient is not finite.

    Args:
        folder: Of the run.
        config: Its settings.
        step: Steps taken, this one included.
        loss: Of the step.
        norm: Of its gradient.

    Raises:
        RuntimeError: one of them is not finite. The message says what to try; a run that goes on from its newest
            checkpoint may do so without being told to override its settings (`is_advised`).
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
    newest = latest_checkpoint(folder)
    left = f"the checkpoint {newest} is intact" if newest else "there is no checkpoint yet"
    advice = f"a {advised('learning_rate')} below {config.learning_rate:g}, {advised('warmup_steps')} above "
    advice += str(config.warmup_steps)
    if config.precision != "float32":
        advice += f", {advised('precision')} 'float32'"
    if config.clip_norm is None:
        advice += f", a {advised('clip_norm')}"
    goes_on = ""
    if newest is not None:
        goes_on = f"; the run goes on from there with such settings, and with others under {advised('override', True)}"
        _note(folder, step)
    said = f"{what} at step {step}, so training stopped; {left}. Try {advice}, and look at the data{goes_on}"
    raise RuntimeError(said)


def has_diverged(folder: Path) -> bool:
    """Whether the training in a folder stopped at a loss that was not finite, and has saved nothing since."""
    return (folder / DIVERGED_FILE).is_file()


def forget_divergence(folder: Path) -> None:
    """Once a training has gone on: see `has_diverged`."""
    (folder / DIVERGED_FILE).unlink(missing_ok=True)


def is_advised(name: str, before: Any, now: Any) -> bool:
    """Whether a change of a setting is one that `check_finite` advises."""
    match name:
        case "learning_rate":
            return bool(now < before)
        case "warmup_steps":
            return bool(now > before)
        case "precision":
            return bool(now == "float32")
        case "clip_norm":
            return now is not None and (before is None or now < before)
        case _:
            return False


def _note(folder: Path, step: int) -> None:
    # Where the disk is full, the advice needs the override.
    with contextlib.suppress(OSError):
        write_text(folder / DIVERGED_FILE, json.dumps({"step": step}) + "\n")
