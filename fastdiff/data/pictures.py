"""Pictures that are decoded as they are needed: files of a folder, members of a ZIP, rows of a table."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.digest import file_digest, listing_digest
from fastdiff.data.source import UnreadableImageError
from fastdiff.files.decoding import Decoding, open_image
from fastdiff.files.scaling import DataScaling
from fastdiff.process.arguments import advised

__all__ = ["FolderFiles", "PictureFiles", "PictureImages", "open_pictures"]

_LOGGER = logging.getLogger("fastdiff.data")

NUM_PROBED = 256
"""Pictures whose headers are compared before the first is decoded, spread over the set."""
MAX_SKIPPED = 100
"""Unreadable pictures in a row that are skipped."""
KEPT_BYTES = 64 << 20
"""What the decoded pictures of a small set may take, to be kept from when each is read first."""
# What a picture of any size takes beside its pixels.
_AROUND = 512


class PictureFiles(Protocol):
    """Where pictures come from."""

    def __len__(self) -> int:
        """Their number."""
        ...

    def name(self, index: int) -> str:
        """Of one, for people."""
        ...

    def open(self, index: int) -> str | BinaryIO:
        """A path, or a file to read from.

        Raises:
            ValueError: it cannot be opened.
        """
        ...

    def digest(self) -> str:
        """Of names and contents, as far as they can be told without reading all; see `fastdiff.data.digest`."""
        ...

    def stamp(self) -> str:
        """What says that a cache is up to date: the digest, and the times of the files where they have some."""
        ...


class FolderFiles:
    """Files of a folder.

    Args:
        root: The folder.
        names: Of the files, relative to it, with "/".
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names
        self._stamps: tuple[str, str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Relative to the folder."""
        return self.names[index]

    def open(self, index: int) -> str:
        """The path."""
        return f"{self.root}/{self.names[index]}"

    def digest(self) -> str:
        """Of all names and sizes, and of the contents of 64 files, as far as `file_digest` reads them."""
        return self._listed()[0]

    def stamp(self) -> str:
        """Of all names, sizes and times of change."""
        return self._listed()[1]

    def _listed(self) -> tuple[str, str]:
        if self._stamps is None:
            facts = [Path(self.open(index)).stat() for index in range(len(self))]
            chosen = np.unique(np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int)).tolist()
            contents = [file_digest(self.open(index)) for index in chosen]
            sizes = [(name, fact.st_size) for name, fact in zip(self.names, facts, strict=True)]
            times = [(name, fact.st_size, fact.st_mtime_ns) for name, fact in zip(self.names, facts, strict=True)]
            self._stamps = listing_digest(sizes, contents=contents), listing_digest(times)
        return self._stamps


@dataclass(frozen=True, eq=False, repr=False)
class PictureImages:
    """Pictures that are decoded as they are read, by several threads.

    Those of a small set, which all fit into `KEPT_BYTES`, are decoded once, unless each step draws what is cut out.

    Attributes:
        files: Where they come from.
        decoding: How their pixels are made.
        shape: (C, H, W) of each.
        labels: int64 [N]; None without classes.
        label_names: Of the classes; None when there are none.
        source: For people and for a checkpoint's metadata.
        workers: Threads that decode.
        skip_corrupt: Read in the place of a picture that cannot be read the next one that can, of the same class where
            there are classes, counted around the end. So a resumed run skips as the first one did.
    """

    files: PictureFiles
    decoding: Decoding
    shape: tuple[int, int, int]
    labels: Tensor | None
    label_names: tuple[str, ...] | None
    source: str
    workers: int = 2
    skip_corrupt: bool = False
    _others: dict[int, int] = field(default_factory=dict, init=False)
    _kept: dict[int, NDArray[Any]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        labels = "no labels" if self.labels is None else "labels"
        return (
            f"PictureImages({len(self)} images of {shape}, {self.scaling.levels} levels, {labels}, "
            f"source={self.source!r}, decoded by {self.workers} threads)"
        )

    @property
    def scaling(self) -> DataScaling:
        """256 levels, or 65536."""
        return DataScaling(65536 if self.decoding.deep else 256)

    @property
    def num_draws(self) -> int:
        """2 for random crops, else 0."""
        return 2 if self.decoding.crop == "random" else 0

    @property
    def keeps(self) -> bool:
        """Whether a picture is decoded once."""
        values = 2 if self.decoding.deep else 1
        return self.num_draws == 0 and len(self) * (values * math.prod(self.shape) + _AROUND) <= KEPT_BYTES

    @property
    def skipped(self) -> dict[int, int]:
        """Pictures that could not be read so far, and those that were read instead."""
        with self._lock:
            return dict(self._others)

    def read(self, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None = None) -> Tensor:
        """The images of these numbers, [n, C, H, W]; see `ImageSource.read`."""
        pixels = np.empty((len(indices), *self.shape), np.uint16 if self.decoding.deep else np.uint8)
        for place, index in enumerate(indices.tolist()):
            words = None if draws is None or self.num_draws == 0 else draws[place]
            pixels[place] = self._one(index, words)
        return torch.from_numpy(pixels.astype(np.int32) if self.decoding.deep else pixels)

    def describe(self, *, with_labels: bool) -> dict[str, Any]:
        """Names, sizes and a digest of the files, and how they are decoded."""
        how = self.decoding
        options = [how.size, how.channels, how.crop, how.resize, how.deep]
        labels = self.labels.tolist() if with_labels and self.labels is not None else None
        about: dict[str, Any] = {"source": self.source, "num_images": len(self), "shape": list(self.shape)}
        about["storage"] = "disk"
        about["digest"] = listing_digest([(self.files.digest(), labels)], options=options)
        return about | ({"classes": list(self.label_names)} if with_labels and self.label_names else {})

    def check(self) -> None:
        """Nothing: a picture's values fit its type."""

    def _one(self, index: int, draws: NDArray[np.uint32] | None) -> NDArray[Any]:
        known = self._others.get(index)
        if known is not None:
            return self._decoded(known, draws)
        try:
            return self._decoded(index, draws)
        except ValueError as error:
            if not self.skip_corrupt:
                raise UnreadableImageError(
                    f"image {index} of {self.source}, {self.files.name(index)}: {error}; repair it, or give "
                    f"{advised('skip_corrupt', True)} to train on others in its place"
                ) from error
            return self._another(index, draws, error)

    def _another(self, index: int, draws: NDArray[np.uint32] | None, error: Exception) -> NDArray[Any]:
        """What is read in the place of a picture that cannot be read."""
        alike = np.arange(len(self))
        if self.labels is not None:
            alike = np.flatnonzero(self.labels.numpy() == int(self.labels[index]))
        alike = np.concatenate([alike[alike > index], alike[alike < index]])
        for other in alike[:MAX_SKIPPED].tolist():
            try:
                pixels = self._decoded(other, draws)
            except ValueError:
                continue
            with self._lock:
                self._others[index] = other
            _LOGGER.warning(
                "%s: %s is skipped (%s), %s stands in its place",
                self.source,
                self.files.name(index),
                error,
                self.files.name(other),
            )
            return pixels
        raise UnreadableImageError(
            f"image {index} of {self.source}, {self.files.name(index)}: {error}; nor can the next "
            f"{min(len(alike), MAX_SKIPPED)} be read that could stand in its place"
        )

    def _decoded(self, index: int, draws: NDArray[np.uint32] | None) -> NDArray[Any]:
        """One picture in the shape of all.

        Raises:
            ValueError: it cannot be read, or has another shape.
        """
        if (kept := self._kept.get(index)) is not None:
            return kept
        pixels = self.decoding.read(self.files.open(index), draws)
        (channels, height, width), (found, high, wide) = self.shape, pixels.shape
        if (high, wide) != (height, width):
            raise ValueError(
                f"{wide}x{high} pixels, where the first images have {width}x{height}; {advised('size', 64)} would "
                "crop and resize them all"
            )
        if found > channels:
            raise ValueError(f"in colour, where the first images are grey: give {advised('channels', 3)} or 1")
        # Grey among colours is copied into each.
        if self.keeps:
            self._kept[index] = pixels.copy()
        return pixels


def open_pictures(
    files: PictureFiles,
    decoding: Decoding,
    *,
    labels: Tensor | None,
    label_names: tuple[str, ...] | None,
    source: str,
    workers: int,
    skip_corrupt: bool = False,
) -> PictureImages:
    """Pictures to decode as they are needed, once their number of channels and their size are known.

    The headers of 256 pictures, spread over the set, are compared beforehand. The others are compared as they are read.

    Raises:
        ValueError: there is none, none of those that were looked at can be read, or their sizes differ.
    """
    if not len(files):
        raise ValueError(f"{source}: there are no images")
    first: tuple[int, tuple[int, int]] | None = None
    opened: list[int] = []
    grey, problem = True, ""
    for index in np.unique(np.linspace(0, len(files) - 1, min(len(files), NUM_PROBED)).astype(int)).tolist():
        try:
            with open_image(files.open(index), deep=decoding.deep) as picture:
                size, mode = (picture.height, picture.width), picture.mode
        except (ValueError, OSError, SyntaxError) as error:
            problem = problem or f"{files.name(index)}: {error}"
            continue
        first = first or (index, size)
        opened.append(index)
        grey = grey and mode in ("1", "L", "LA")
        # A header does not always say that a picture is to be turned.
        if decoding.size is None and sorted(size) != sorted(first[1]):
            sizes = [f"{files.name(one)} of {width}x{height}" for one, (height, width) in (first, (index, size))]
            raise ValueError(
                f"images in {source} must have one size, got {' and '.join(sizes)} pixels: {advised('size', 64)} would "
                "crop and resize them all"
            )
    channels = 1 if decoding.deep else decoding.channels or (1 if grey else 3)
    size_of_all = decoding.size
    for index in opened if size_of_all is None else []:
        try:
            size_of_all = decoding.read(files.open(index)).shape[1:]
            break
        except ValueError as error:
            problem = problem or f"{files.name(index)}: {error}"
    if not opened or size_of_all is None:
        raise ValueError(f"no image of {source} can be read; the first is {problem}")
    shape = (channels, *size_of_all)
    return PictureImages(
        files, decoding, shape, labels, label_names, source, workers=workers, skip_corrupt=skip_corrupt
    )
