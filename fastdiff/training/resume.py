"""What the checkpoints of a training hold of it, compared with what goes on, and taken over."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fastdiff.files.checkpoint import (
    AVERAGES_FILE,
    CONFIG_FILE,
    MODEL_FILE,
    RAW_PREFIX,
    TRAINING_FILE,
    load_tensors,
    read_config,
    versions,
)
from fastdiff.files.contents import describing
from fastdiff.nets.unet import UNet
from fastdiff.process.arguments import advised
from fastdiff.process.diffusion import Diffusion
from fastdiff.training.averages import Averages
from fastdiff.training.config import FREE, NEWER, changes, differences
from fastdiff.training.divergence import has_diverged, is_advised
from fastdiff.training.objectives import Objective
from fastdiff.training.optimizer import fresh_state

__all__ = ["Parts", "Past", "compared", "identity", "machine_notes", "processes_notes"]

OBJECTIVE_PREFIX = "objective."


@dataclass(frozen=True, eq=False)
class Parts:
    """What a training changes; all of it is in its checkpoints.

    Attributes:
        unet: The network that is trained.
        optimizer: AdamW over its parameters.
        averages: Of its weights.
        objective: What it has learnt of the losses.
    """

    unet: UNet
    optimizer: torch.optim.AdamW
    averages: Averages
    objective: Objective

    def tensors(self) -> dict[str, Tensor]:
        """All but the averages, for `training.safetensors`: the live ones, but for the optimizer's steps."""
        tensors: dict[str, Tensor] = {}
        steps = []
        for name, parameter in self.unet.named_parameters():
            # A parameter that never had a gradient has no state; a fresh state is the same.
            state = self.optimizer.state.get(parameter) or fresh_state(parameter)
            tensors[RAW_PREFIX + name] = parameter
            tensors[f"exp_avg.{name}"] = state["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
            steps.append(state["step"])
        tensors["optimizer_steps"] = torch.stack(steps)
        return tensors | {OBJECTIVE_PREFIX + name: value for name, value in self.objective.state_dict().items()}

    def load(self, checkpoint: Path, past: Past) -> None:
        """Take over what a checkpoint holds; `past` is what it says of itself.

        Raises:
            ValueError: a file is damaged, or is of another network.
        """
        for parameter in self.unet.parameters():
            self.optimizer.state[parameter] = fresh_state(parameter)
        tensors = self.tensors()
        load_tensors(checkpoint / TRAINING_FILE, tensors)
        for parameter, steps in zip(self.unet.parameters(), tensors["optimizer_steps"], strict=True):
            self.optimizer.state[parameter]["step"] = steps.clone()
        self.averages.load(checkpoint, past.settings, past.step)
        learnt = {name: value for name, value in tensors.items() if name.startswith(OBJECTIVE_PREFIX)}
        self.objective.load_state_dict({name.removeprefix(OBJECTIVE_PREFIX): value for name, value in learnt.items()})

    def live(self) -> Iterator[Tensor]:
        """All that changes, in one order at all processes."""
        yield from self.unet.parameters()
        for tensors in self.by_parameter():
            yield from tensors
        yield from self.objective.state_dict().values()

    def by_parameter(self) -> Iterator[list[Tensor]]:
        """What goes with the parameters, a kind after the other: AdamW's steps and moments, and the averages."""
        states = []
        for parameter in self.unet.parameters():
            self.optimizer.state[parameter] = self.optimizer.state.get(parameter) or fresh_state(parameter)
            states.append(self.optimizer.state[parameter])
        for name in sorted(states[0]):
            yield [state[name] for state in states]
        yield from self.averages.by_parameter()

    def check_written(self, save_to: Callable[[Path], Path], folder: Path) -> None:
        """Write a checkpoint for a trial, read it again and remove it.

        Args:
            save_to: Writes one into a run folder.
            folder: Of the run; the trial is in a folder in it.

        Raises:
            RuntimeError: it could not be written, or is not read as it was written.
        """
        files = {TRAINING_FILE: self.tensors(), MODEL_FILE: self.averages.first.state_dict()}
        files |= {AVERAGES_FILE: others} if (others := self.averages.others()) else {}
        with TemporaryDirectory(prefix=".trial-", dir=folder) as trial:
            checkpoint = save_to(Path(trial))
            for name, tensors in files.items():
                with safe_open(checkpoint / name, framework="pt") as file:
                    wrong = [key for key, value in tensors.items() if not _same(file.get_tensor(key), value)]
                if wrong:
                    raise RuntimeError(
                        f"a checkpoint for a trial in {folder} is read otherwise than it was written ({wrong[0]}): the "
                        "disk or the file system is at fault, and training would be for nothing; give another folder"
                    )


@dataclass(frozen=True)
class Past:
    """What a checkpoint says of the training before it.

    Attributes:
        step: Steps taken.
        settings: That it was trained with, with the history of their changes before.
        changes: Settings that were other than they are now: the value that they had, and the one that they have.
        history: What changed at which step, these changes included.
        versions: Of what wrote it.
    """

    step: int
    settings: dict[str, Any]
    changes: dict[str, tuple[Any, Any]]
    history: list[dict[str, Any]]
    versions: dict[str, str]


def compared(checkpoint: Path, now: dict[str, Any], diffusion: Diffusion, *, override: bool, run_folder: Path) -> Past:
    """The past of a training, if the checkpoint is one of its own.

    Args:
        checkpoint: Its folder.
        now: What the training is: "training", "unet", "diffusion", "scaling" and "data", as plain values.
        diffusion: The process of now.
        override: Whether settings may be others than before, among those that may change at all.
        run_folder: Of the training: after a divergence, what was advised then may change without `override`.

    Raises:
        ValueError: the checkpoint is of another training, or settings have changed and may not; they are listed.
    """
    saved = read_config(checkpoint)
    then = saved["training"]
    changed: dict[str, tuple[Any, Any]] = {}
    history: list[dict[str, Any]] = []
    if isinstance(then, dict):
        changed = changes(then, now["training"])
        history = list(then.get("changes") or [])
        if changed:
            history.append({"step": saved["step"]} | {key: list(both) for key, both in changed.items()})
        saved["training"] = then | {key: both[1] for key, both in changed.items()}
    with describing(checkpoint / CONFIG_FILE, "diffusion"):
        if Diffusion.from_dict(saved["diffusion"]) == diffusion:
            # Older checkpoints have the betas of schedules whose name is enough.
            saved["diffusion"] = now["diffusion"]
    lines = [line for key, value in now.items() for line in differences(key, saved[key], value)]
    if lines:
        listed = "\n  ".join(lines)
        raise ValueError(
            f"{checkpoint} is of another run; give what it was started with, or another folder:\n  {listed}"
        )
    if not override:
        _refuse(checkpoint, changed, advice=has_diverged(run_folder))
    return Past(saved["step"], then if isinstance(then, dict) else {}, changed, history, saved["versions"])


def identity(config: Mapping[str, Any]) -> str:
    """A digest of what makes a run this one, whatever has changed since it began.

    Args:
        config: "training", "unet", "diffusion", "scaling" and "data" of one of its checkpoints.
    """
    training = dict(config["training"] or {})
    for change in reversed(training.get("changes") or []):
        training |= {name: both[0] for name, both in change.items() if name != "step"}
    # A setting that did not exist when the run began changes nothing while it is what it was by default.
    training = {name: value for name, value in training.items() if name not in NEWER or value != NEWER[name]}
    about = {name: config[name] for name in ("unet", "diffusion", "scaling", "data")} | {"training": training}
    kept = {
        section: {name: value for name, value in (values or {}).items() if name not in FREE}
        for section, values in about.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _refuse(checkpoint: Path, changed: Mapping[str, tuple[Any, Any]], *, advice: bool) -> None:
    """Raise ValueError for changed settings; with `advice`, but for those that a divergence asks for."""
    refused = {name: both for name, both in changed.items() if not (advice and is_advised(name, *both))}
    if not refused:
        return
    listed = "; ".join(f"{name}: {before!r} in the checkpoint, {now!r} now" for name, (before, now) in refused.items())
    raise ValueError(
        f"{checkpoint} was written with other settings; to go on with those of now, which the checkpoints will record, "
        f"give {advised('override', True)}, else what the run had before: {listed}"
    )


def machine_notes(saved: dict[str, str], *, own_sums: bool, has_dropout: bool) -> tuple[str, ...]:
    """What has changed that training's last bits depend on; older checkpoints do not know all of it.

    Args:
        saved: The versions that a checkpoint names.
        own_sums: Whether no sum over a batch is left to PyTorch, which cuts it by threads.
        has_dropout: Whether the network has dropout, whose masks were drawn for a whole batch once.
    """
    now = versions()
    saved = {"dropout": "by batch"} | saved
    names = {"instructions": "instruction set", "torch": "PyTorch"} | ({} if own_sums else {"threads": "threads"})
    names |= {"dropout": "dropout"} if has_dropout else {}
    changed = [
        f"{name} {saved[key]}, now {now[key]}" for key, name in names.items() if saved.get(key, now[key]) != now[key]
    ]
    if not changed:
        return ()
    note = (
        f"the checkpoint was written with {'; '.join(changed)}: training goes on, but will not end with the "
        "bytes of an uninterrupted run"
    )
    logging.getLogger("fastdiff").warning("%s", note)
    return (note,)


def processes_notes(then: int, now: int) -> tuple[str, ...]:
    """What is said where other than so many processes go on: the draws are the same, the sums are not."""
    if then == now:
        return ()
    note = (
        f"the checkpoint was written by {then} processes and {now} go on: they draw the same, but will not end with "
        "the bytes of an uninterrupted run"
    )
    logging.getLogger("fastdiff.training").info("%s", note)
    return (note,)


def _same(read: Tensor, live: Tensor) -> bool:
    return torch.equal(read, live.detach().cpu()) or bool(live.isnan().any())
