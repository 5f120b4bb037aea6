"""The log of a training run: a file of numbers, pictures, and what else is told of them."""

from __future__ import annotations

import fcntl
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from PIL import Image
from torch import Tensor

from fastdiff.files.atomic import NO_LOCKS, write_text
from fastdiff.files.images import write_grid
from fastdiff.training.trackers import Trackers

__all__ = ["METRICS_FILE", "PICTURES_FOLDER", "TrainLog", "read_metrics"]

METRICS_FILE = "metrics.jsonl"
LOCK_FILE = "train.lock"
PICTURES_FOLDER = "pictures"
_PICTURE = re.compile(r"step_(\d{8,})\.png")

Entry = Mapping[str, float | Sequence[float | None] | str]


class TrainLog:
    """Numbers by step, in `metrics.jsonl` (a JSON object per line), and pictures, in `pictures/`; told to trackers too.

    A context. Entering it drops what was logged after `step`, which will be logged again, and locks the folder against
    another process; the lock goes with the process, however that ends.

    Args:
        folder: Of the training run; made where it does not exist.
        step: Steps taken so far.
        trackers: Names of what else is told; see `Trackers`.
        settings: What is trained, for the trackers: plain values.
    """

    def __init__(
        self, folder: Path, step: int, trackers: Sequence[str] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.step = step
        self._notes: tuple[str, ...] = ()
        self._stack = ExitStack()
        self._metrics: TextIO | None = None
        self._names, self._settings = trackers, dict(settings or {})
        self._trackers: Trackers | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self._notes + (() if self._trackers is None else self._trackers.notes)

    def __enter__(self) -> Self:
        """Lock the folder and open the files.

        Raises:
            RuntimeError: another process trains in the folder, it cannot be written to, or a tracker is not installed.
        """
        with ExitStack() as stack, self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(self.folder / LOCK_FILE, "w", encoding="utf-8"))
            self._lock(lock)
            self._metrics = stack.enter_context(self._open_metrics())
            self._drop_pictures()
            self._trackers = Trackers(self._names, self.folder, self.step)
            stack.callback(self._trackers.close)
            self._trackers.settings(self._settings)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `close`, but that what went wrong first is what is raised."""
        try:
            self.close()
        except RuntimeError:
            # What went wrong first is the news.
            if error is None:
                raise

    def close(self) -> None:
        """Close the files and the trackers, and unlock the folder; once is enough.

        Raises:
            RuntimeError: what was left could not be written.
        """
        with self._explained():
            self._stack.close()

    def write(self, step: int, values: Entry) -> None:
        """Log what was found at a step: numbers, lists of them, and texts, which trackers are not told.

        Numbers that are not finite become null in the file, which is JSON.

        Raises:
            RuntimeError: they could not be written.
        """
        assert self._metrics is not None
        assert self._trackers is not None
        with self._explained():
            self._metrics.write(
                json.dumps({"step": step} | {name: _plain(value) for name, value in values.items()}) + "\n"
            )
            self._metrics.flush()
        numbers: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, int | float):
                numbers[name] = value
            elif not isinstance(value, str):
                digits = len(str(len(value) - 1))
                numbers |= {f"{name}/{i:0{digits}d}": part for i, part in enumerate(value) if part is not None}
        self._trackers.scalars(step, numbers)

    def draw(self, step: int, images: Tensor, *, columns: int | None, labels: Sequence[str] | None, title: str) -> Path:
        """Draw a grid of images [N, 1, 3 or 4, H, W] in [-1, 1] found at a step; gives its path.

        Raises:
            RuntimeError: it could not be written.
        """
        assert self._trackers is not None
        path = self.folder / PICTURES_FOLDER / f"step_{step:08d}.png"
        with self._explained():
            write_grid(path, images, columns=columns, labels=labels, title=title)
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        self._trackers.image(step, "samples", pixels)
        return path

    def _lock(self, file: TextIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another process is training in {self.folder}: wait for it, stop it, or use another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"{self.folder} cannot be locked ({error.strerror}): take care that no other process trains in it",
                stacklevel=4,
            )

    def _open_metrics(self) -> TextIO:
        path = self.folder / METRICS_FILE
        if path.exists():
            kept, damaged = [], 0
            # What follows the last newline is half a line, which a killed process may leave.
            *lines, _ = path.read_bytes().split(b"\n")
            for line in lines:
                step = _step_of(line)
                damaged += step is None
                if step is not None and step <= self.step:
                    kept.append(line.decode() + "\n")
            if damaged:
                self._notes += (f"{path}: {damaged} damaged lines were dropped",)
            write_text(path, "".join(kept))
        return open(path, "a", encoding="utf-8")

    def _drop_pictures(self) -> None:
        for path in (self.folder / PICTURES_FOLDER).glob("step_*.png"):
            found = _PICTURE.fullmatch(path.name)
            if found is not None and int(found[1]) > self.step:
                path.unlink()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RuntimeError(f"could not write the log in {self.folder}: {reason}; checkpoints are intact") from error


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a run's log, in their order; none where there is no log. Damaged lines are left out."""
    path = Path(folder) / METRICS_FILE
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [json.loads(line) for line in lines if _step_of(line) is not None]


def _plain(value: float | Sequence[float | None] | str) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str) else [None if part is None else _plain(part) for part in value]


def _step_of(line: bytes) -> int | None:
    """The step of an entry; None for what is no entry."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
