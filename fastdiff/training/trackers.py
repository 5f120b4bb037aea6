"""What is told of a training as it goes: TensorBoard, Weights & Biases, trackio, through one small protocol."""

from __future__ import annotations

import importlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff.files.atomic import write_text

__all__ = ["LOGS_FOLDER", "Tracker", "Trackers"]

LOGS_FOLDER = "logs"
PROJECT = "fastdiff"
# Its name at W&B, where a run that goes on stays one.
RUN_ID_FILE = "wandb_run.txt"

_LOGGER = logging.getLogger("fastdiff.training")


class Tracker(Protocol):
    """Where the numbers and pictures of a training go, besides its folder. Any of its methods may fail."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """Take note of what is trained: plain values."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of numbers after so many steps."""
        ...

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Take note of a picture, [H, W, 3], after so many steps."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Trackers:
    """Several trackers, each of which may fail without the training minding: it is said, and the tracker left out.

    Args:
        names: Of them, among `fastdiff.training.config.TRACKERS`.
        folder: Of the training run.
        step: Steps taken so far.

    Attributes:
        notes: Sentences for the user.

    Raises:
        RuntimeError: W&B or trackio are not installed. TensorBoard is left out then, with a note.
    """

    def __init__(self, names: Sequence[str], folder: Path, step: int) -> None:
        self.notes: tuple[str, ...] = ()
        self._open: dict[str, Tracker] = {}
        for name in names:
            module, title = _MODULES[name]
            try:
                found = importlib.import_module(module)
            except ImportError as error:
                missing = f'{title} is not installed, so there are no logs for it: pip install "fastdiff-ddpm[{{}}]"'
                if name != "tensorboard":
                    raise RuntimeError(f"trackers: {missing.format(name)}") from error
                self.notes += (missing.format("log"),)
                continue
            try:
                self._open[name] = _MAKERS[name](found, folder, step)
            except Exception as error:
                self._give_up(name, error)

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker.settings`, as for the others."""
        self._each(lambda tracker: tracker.settings(values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.image(step, name, pixels))

    def close(self) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                action(tracker)
            # A service may fail in any way, and none is worth a training.
            except Exception as error:
                del self._open[name]
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        note = f"{_MODULES[name][1]} failed and is told nothing more, while the training goes on: {reason}"
        self.notes += (note,)
        _LOGGER.warning("%s", note)


class _TensorBoard:
    def __init__(self, module: Any, folder: Path, step: int) -> None:
        # What was logged after the step, by a run that was killed, will be logged again.
        self._writer = module.SummaryWriter(str(folder / LOGS_FOLDER), purge_step=step + 1)
        self._step = step

    def settings(self, values: Mapping[str, Any]) -> None:
        lines = json.dumps(values, indent=2, ensure_ascii=False).splitlines()
        # Indented text is code in Markdown.
        self._writer.add_text("settings", "\n".join("    " + line for line in lines), self._step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, module: Any, folder: Path, step: int) -> None:
        path = folder / RUN_ID_FILE
        if not path.is_file():
            write_text(path, secrets.token_hex(8) + "\n")
        identity = path.read_text(encoding="utf-8").strip()
        self._image = module.Image
        self._run = module.init(
            project=PROJECT, name=folder.resolve().name, id=identity, dir=str(folder), resume="allow"
        )
        # W&B's own steps may only rise, and a run that was killed goes on from an earlier one.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def settings(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({"step": step, name: self._image(pixels)})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, module: Any, folder: Path, step: int) -> None:
        self._image = module.Image
        self._run = module.init(project=PROJECT, name=folder.resolve().name, resume="allow", embed=False)

    def settings(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(values)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({name: self._image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()


# The module to import, and what people call it.
_MODULES = {
    "tensorboard": ("torch.utils.tensorboard", "TensorBoard"),
    "wandb": ("wandb", "Weights & Biases"),
    "trackio": ("trackio", "trackio"),
}
_MAKERS: dict[str, Callable[[Any, Path, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}
