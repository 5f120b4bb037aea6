"""The log of a training run: a file of numbers, and TensorBoard where it is installed."""

from __future__ import annotations

import fcntl
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from fastdiff.files.atomic import NO_LOCKS, write_text

__all__ = ["TrainLog"]

METRICS_FILE = "metrics.jsonl"
LOCK_FILE = "train.lock"
LOGS_FOLDER = "logs"


class TrainLog:
    """Numbers by step, in `metrics.jsonl` (one JSON object per line) and in `logs/` for TensorBoard.

    A context. Entering it drops what was logged after `step`, which will be logged again, and locks the folder against
    another process; the lock goes with the process, however that ends.

    Args:
        folder: Of the training run; made where it does not exist.
        step: Steps taken so far.

    Attributes:
        notes: Sentences for the user.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.step = step
        self.notes: tuple[str, ...] = ()
        self._stack = ExitStack()
        self._metrics: TextIO | None = None
        self._board: Any = None

    def __enter__(self) -> Self:
        """Lock the folder and open the files.

        Raises:
            RuntimeError: another process trains in the folder, or it cannot be written to.
        """
        with ExitStack() as stack, self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(self.folder / LOCK_FILE, "w", encoding="utf-8"))
            self._lock(lock)
            self._metrics = stack.enter_context(self._open_metrics())
            self._board = self._open_board()
            if self._board is not None:
                stack.callback(self._board.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files and unlock the folder."""
        try:
            with self._explained():
                self._stack.close()
        except RuntimeError:
            # What went wrong first is the news.
            if error is None:
                raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step.

        Raises:
            RuntimeError: they could not be written.
        """
        assert self._metrics is not None
        with self._explained():
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            self._metrics.flush()
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

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
                self.notes += (f"{path}: {damaged} damaged lines were dropped",)
            write_text(path, "".join(kept))
        return open(path, "a", encoding="utf-8")

    def _open_board(self) -> Any:
        try:
            board = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            self.notes += (
                'TensorBoard is not installed, so there are no logs for it: pip install "fastdiff-ddpm[log]"',
            )
            return None
        return board.SummaryWriter(str(self.folder / LOGS_FOLDER), purge_step=self.step + 1)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RuntimeError(f"could not write the log in {self.folder}: {reason}; checkpoints are intact") from error


def _step_of(line: bytes) -> int | None:
    """The step of an entry; None for what is no entry."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
