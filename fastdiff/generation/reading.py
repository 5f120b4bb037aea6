"""Images of a finished job, or of a Parquet file, read again: a part or a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.generation import formats
from fastdiff.generation.folder import JobFolder
from fastdiff.generation.formats import Pixels
from fastdiff.generation.job import MANIFEST, Job

__all__ = ["StoredImages", "is_stored", "stored_images"]


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images on the disk.

    Attributes:
        source: Where.
        num: How many.
        shape: (H, W, C).
        batches: From a number of images to batches of at most so many, uint8 [n, H, W, C], in order.
        about: Of a job, as plain values: "seed", "sampler" and "weights", the model's fingerprint.
    """

    source: str
    num: int
    shape: tuple[int, int, int]
    batches: Callable[[int], Iterator[Pixels]]
    about: dict[str, Any] = field(default_factory=dict)


def is_stored(path: str | Path) -> bool:
    """Whether `stored_images` reads it."""
    return (Path(path) / MANIFEST).is_file() or Path(path).suffix.lower() == ".parquet"


def stored_images(path: str | Path) -> StoredImages:
    """The images of a job's folder or of a Parquet file that `gather` wrote.

    Raises:
        ValueError: parts are missing or damaged, it holds scores, or it is neither.
        RuntimeError: it is Parquet, and pyarrow is missing.
    """
    place = Path(path)
    return _of_job(place) if (place / MANIFEST).is_file() else _of_parquet(place)


def _of_job(path: Path) -> StoredImages:
    job = Job.read(path)
    if job.kind != "generate":
        raise ValueError(f"{path} holds scores, and no images")
    kind = job.about["format"]
    folder = JobFolder(path, job, formats.SUFFIXES[kind])
    done = len(folder.done())
    if done < len(job):
        raise ValueError(f"{path} has {done:,} of {len(job):,} parts: generate the others first")

    def batches(size: int) -> Iterator[Pixels]:
        for part in job.parts():
            fault = folder.fault(part)
            if fault is not None:
                raise ValueError(f"{folder.file(part)}: {fault}; generate it again")
            images = formats.read(folder.file(part), kind)[0]
            yield from (images[first : first + size] for first in range(0, len(images), size))

    channels, height, width = job.about["shape"]
    table = job.about["table"]
    about = {"seed": job.about["seed"], "sampler": table.get("name"), "weights": job.about["weights"]}
    return StoredImages(str(path), job.num, (height, width, channels), batches, about)


def _of_parquet(path: Path) -> StoredImages:
    num = formats.count_parquet(path)
    first = next(formats.parquet_batches(path, 1), None)
    if first is None:
        raise ValueError(f"{path} holds no images")
    height, width, channels = first.shape[1:]

    def batches(size: int) -> Iterator[Pixels]:
        for images in formats.parquet_batches(path, size):
            if images.shape[1:] != first.shape[1:]:
                raise ValueError(f"{path} holds images of several sizes: {first.shape[1:]} and {images.shape[1:]}")
            yield images

    return StoredImages(str(path), num, (height, width, channels), batches)
