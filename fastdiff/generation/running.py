"""The loop over the parts of a job, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fastdiff.generation.folder import JobFolder
from fastdiff.generation.job import Job, Part
from fastdiff.generation.shards import Shard
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number

__all__ = ["Progress", "Work", "run"]

Progress = Callable[[int, int], None]
"""Called with the images of this shard that are done, and with all of them."""


class Work(Protocol):
    """What can be made part by part."""

    @property
    def job(self) -> Job:
        """As the manifest says it."""
        ...

    @property
    def suffix(self) -> str:
        """Of a part's file; "" for a folder."""
        ...

    def make(self, folder: JobFolder, part: Part, batch_size: int, tell: Callable[[int], None] | None = None) -> None:
        """Make a part and write it; `tell` is called with the images that were done."""
        ...


def run(work: Work, out: Path, shard: Shard | None, batch_size: int, progress: Progress | None) -> JobFolder:
    """Make the parts of a shard that are not there yet; see `fastdiff.generation.generate.generate`."""
    batch_size = whole_number(spelt("batch_size"), batch_size, low=1)
    shard = Shard.from_environment() if shard is None else shard
    folder = JobFolder.begin(out, work.job, work.suffix)
    folder.tidy()
    total = sum(part.num for part in work.job.parts() if shard.owns(part.number))
    done = 0

    def tell(num: int) -> None:
        nonlocal done
        done += num
        if progress is not None:
            progress(min(done, total), total)

    for part in folder.missing(shard):
        # Those of the shard that come before are whole: the last of a job has what is left.
        done = (part.number - shard.index) // shard.count * work.job.part_size
        work.make(folder, part, batch_size, tell)
    if progress is not None:
        progress(total, total)
    return folder
