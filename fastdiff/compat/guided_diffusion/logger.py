"""Their logger's functions: text to the terminal and log.txt, numbers to progress.csv."""

from __future__ import annotations

import csv
import datetime
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import torch.distributed as dist

from fastdiff.compat.absent import explained

__all__ = [
    "DEBUG",
    "DISABLED",
    "ERROR",
    "INFO",
    "WARN",
    "configure",
    "debug",
    "dump_tabular",
    "dumpkvs",
    "error",
    "get_dir",
    "getkvs",
    "info",
    "log",
    "logkv",
    "logkv_mean",
    "logkvs",
    "profile",
    "profile_kv",
    "record_tabular",
    "reset",
    "scoped_configure",
    "set_comm",
    "set_level",
    "warn",
]

_FUNCTIONS = "it writes text to the terminal and log.txt, and numbers to progress.csv; see configure, log and logkv"
_CLASSES = (
    "CSVOutputFormat", "HumanOutputFormat", "JSONOutputFormat", "KVWriter", "Logger", "SeqWriter",
    "TensorBoardOutputFormat", "get_current", "get_rank_without_mpi_import", "make_output_format", "mpi_weighted_mean",
)  # fmt: skip
__getattr__ = explained(__name__, dict.fromkeys(_CLASSES, _FUNCTIONS))

_P = ParamSpec("_P")
_R = TypeVar("_R")

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50


class _Logger:
    """Where the functions of this module write."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.level = INFO
        self.values: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []


_current = _Logger()


def configure(dir: str | Path | None = None, format_strs: Any = None, comm: Any = None, log_suffix: str = "") -> None:
    """Write into a folder from now on.

    Args:
        dir: The folder; $OPENAI_LOGDIR if None, else a new one among the temporary files.
        format_strs: Taken for compatibility: text, terminal and csv are written.
        comm: Taken for compatibility: there is no MPI.
        log_suffix: Behind the names of the files.
    """
    global _current
    chosen = dir or os.environ.get("OPENAI_LOGDIR")
    if chosen is None:
        stamp = datetime.datetime.now().strftime("openai-%Y-%m-%d-%H-%M-%S-%f")
        chosen = Path(tempfile.gettempdir()) / stamp
    folder = Path(chosen).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _current = _Logger(folder)
    log(f"Logging to {folder}")


def reset() -> None:
    """Stop writing into a folder."""
    global _current
    _current = _Logger()


@contextmanager
def scoped_configure(dir: str | Path | None = None, format_strs: Any = None, comm: Any = None) -> Iterator[None]:
    """Write into a folder while the block lasts; arguments as `configure`."""
    global _current
    before = _current
    configure(dir, format_strs, comm)
    try:
        yield
    finally:
        _current = before


def get_dir() -> str | None:
    """The folder, or None before `configure`."""
    return None if _current.folder is None else str(_current.folder)


def set_comm(comm: Any) -> None:
    """Taken for compatibility: there is no MPI."""


def set_level(level: int) -> None:
    """Pass over messages below a level."""
    _current.level = level


def log(*args: Any, level: int = INFO) -> None:
    """Write a message, its parts with blanks between them."""
    if level < _current.level or not _is_first():
        return
    text = " ".join(map(str, args))
    print(text, flush=True)
    if _current.folder is not None:
        with (_current.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def debug(*args: Any) -> None:
    """`log` at level DEBUG."""
    log(*args, level=DEBUG)


def info(*args: Any) -> None:
    """`log` at level INFO."""
    log(*args, level=INFO)


def warn(*args: Any) -> None:
    """`log` at level WARN."""
    log(*args, level=WARN)


def error(*args: Any) -> None:
    """`log` at level ERROR."""
    log(*args, level=ERROR)


def logkv(key: str, val: Any) -> None:
    """Set a number of the next row."""
    _current.values[key] = val


def logkv_mean(key: str, val: float) -> None:
    """Add to a mean of the next row."""
    count = _current.counts.get(key, 0)
    old = _current.values.get(key, 0.0)
    _current.values[key] = old * count / (count + 1) + val / (count + 1)
    _current.counts[key] = count + 1


def logkvs(d: Mapping[str, Any]) -> None:
    """Set several numbers of the next row."""
    for key, value in d.items():
        logkv(key, value)


def getkvs() -> dict[str, Any]:
    """The numbers of the next row."""
    return _current.values


def dumpkvs() -> dict[str, Any]:
    """Write the row, and start a new one; returns the row."""
    row = dict(_current.values)
    _current.values, _current.counts = {}, {}
    if not _is_first():
        return row
    width = max((len(key) for key in row), default=0)
    log(
        "\n".join(
            f"{key:<{width}}  {value:.4g}" if isinstance(value, float) else f"{key:<{width}}  {value}"
            for key, value in sorted(row.items())
        )
    )
    _current.rows.append(row)
    if _current.folder is not None:
        # Rows may have new keys, so the file is written anew.
        keys = sorted({key for past in _current.rows for key in past})
        with (_current.folder / "progress.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(_current.rows)
    return row


@contextmanager
def profile_kv(scopename: str) -> Iterator[None]:
    """Add the seconds that a block takes to the number "wait_" + its name."""
    start = perf_counter()
    try:
        yield
    finally:
        key = "wait_" + scopename
        logkv(key, _current.values.get(key, 0.0) + perf_counter() - start)


def profile(n: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator: add the seconds of each call to the number "wait_" + n."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with profile_kv(n):
                return function(*args, **kwargs)

        return timed

    return decorate


record_tabular = logkv
dump_tabular = dumpkvs


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
