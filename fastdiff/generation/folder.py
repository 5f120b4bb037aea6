"""A job's folder: which parts are done, and the records that say so.

A part is a file, or a folder of pictures, and beside it a record: its ids, its checksum, and what made it. The record
is written last, so a part with a record is whole; its checksum tells damage that came later.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastdiff.files.atomic import NO_LOCKS, atomic_file, remove_stale
from fastdiff.generation.formats import remove
from fastdiff.generation.job import Job, Part, checksum
from fastdiff.generation.shards import Shard

__all__ = ["JobFolder"]

LOCK = ".lock"
PARTS = "parts"
NOT_MADE = "not made yet"

_LOGGER = logging.getLogger("fastdiff.generation")


@dataclass(frozen=True)
class JobFolder:
    """The parts of a job on disk.

    Attributes:
        path: The job's folder.
        job: What it is.
        suffix: Of a part's file; "" where it is a folder.
    """

    path: Path
    job: Job
    suffix: str

    @classmethod
    def begin(cls, path: Path, job: Job, suffix: str) -> Self:
        """A job's folder, begun or gone on with; see `Job.begin` for what it raises."""
        return cls(path, job.begin(path), suffix)

    def file(self, part: Part) -> Path:
        """Where a part lies."""
        return self.path / PARTS / f"{part.name}{self.suffix}"

    def record(self, part: Part) -> Path:
        """Where what is known of it lies."""
        return self.path / PARTS / f"{part.name}.json"

    def tidy(self) -> None:
        """Delete what killed processes of this machine left half written."""
        remove_stale(self.path / PARTS, "part-*")
        remove_stale(self.path, "*")

    def fault(self, part: Part) -> str | None:
        """Why a part has to be made; None where it is there and whole. Reads all of its bytes."""
        try:
            said = json.loads(self.record(part).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return NOT_MADE
        except (OSError, ValueError, RecursionError):
            return "its record is damaged"
        file = self.file(part)
        if not isinstance(said, dict) or said.get("num") != part.num or said.get("first") != part.first:
            return "it was made for fewer ids"
        if not file.exists():
            return "its file is gone"
        return None if checksum(file) == said.get("sha256") else "its checksum is another"

    def missing(self, shard: Shard) -> Iterator[Part]:
        """The parts of a shard that have to be made, each looked at when its turn comes, and claimed while it is made.

        What another process of this machine is making is passed over, and looked at again in the end.
        """
        later = []
        for part in self.job.parts():
            if shard.owns(part.number):
                with self._claimed(part, wait=False) as is_ours:
                    if not is_ours:
                        later.append(part)
                    elif self._is_missing(part):
                        yield part
        for part in later:
            with self._claimed(part, wait=True):
                if self._is_missing(part):
                    yield part

    def _is_missing(self, part: Part) -> bool:
        fault = self.fault(part)
        if fault not in (None, NOT_MADE):
            _LOGGER.warning("%s is made again: %s", self.file(part), fault)
        return fault is not None

    @contextmanager
    def _claimed(self, part: Part, *, wait: bool) -> Iterator[bool]:
        """Whether no other process has the part; where files cannot be locked, none is known to."""
        try:
            opened = (self.path / LOCK).open("a")
        except OSError as error:
            raise RuntimeError(
                f"{self.path} cannot be written to: {error.strerror or error}; {len(self.done()):,} of "
                f"{len(self.job):,} parts are done"
            ) from error
        with opened as file:
            try:
                # A byte of the file for each part; the lock goes with the process, however that ends.
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, part.number)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    yield False
                    return
                if error.errno not in NO_LOCKS:
                    raise
            yield True

    def done(self) -> list[Part]:
        """The parts that have a record of all of their ids; their bytes are not read."""
        return [part for part in self.job.parts() if self._said(part).get("num") == part.num]

    def listed(self) -> list[Part]:
        """The parts that lie there with a record, by one listing: of a job that grew, perhaps one that is not whole.

        `done` reads a record for each part of the job. Thousands of processes that do so at their end would take longer
        than the job.
        """
        try:
            names = set(os.listdir(self.path / PARTS))
        except FileNotFoundError:
            return []
        return [p for p in self.job.parts() if f"{p.name}.json" in names and f"{p.name}{self.suffix}" in names]

    def keep(self, part: Part, write: Callable[[Path], None], about: dict[str, Any]) -> None:
        """Write a part and then its record.

        Args:
            part: Which.
            write: Writes the file, whole or not at all.
            about: What the record says besides.

        Raises:
            RuntimeError: it could not be written, as on a full disk; what is there is whole.
        """
        file = self.file(part)
        try:
            file.parent.mkdir(exist_ok=True)
            # Without its record a part is not taken for whole while it changes.
            self.record(part).unlink(missing_ok=True)
            remove(file)
            write(file)
            said = {"first": part.first, "num": part.num, "sha256": checksum(file), **about}
            with atomic_file(self.record(part), sync=True) as stream:
                stream.write((json.dumps(said) + "\n").encode())
        except OSError as error:
            done, num = len(self.done()), len(self.job)
            raise RuntimeError(
                f"{file} could not be written: {error.strerror or error}; {done:,} of {num:,} parts are done, and the "
                "same command goes on from there"
            ) from error

    def _said(self, part: Part) -> dict[str, Any]:
        try:
            said = json.loads(self.record(part).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) and self.file(part).exists() else {}
