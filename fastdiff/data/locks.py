"""One process at a time fills a cache; the others of a run wait and find it filled."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cache_lock"]


@contextlib.contextmanager
def cache_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, against other processes; the system lets go of it when a process dies.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be used as a cache: {error.strerror or error}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
