"""Sets of images that are evaluated: read batch by batch, whatever they lie in."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdiff.data.cifar import is_cifar10
from fastdiff.data.opening import DataOptions, open_images
from fastdiff.data.source import ImageSource
from fastdiff.evaluation.moments import Gaussian
from fastdiff.files.images import to_uint8

__all__ = ["ImageSet", "Pixels", "open_reference", "open_set"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one shape.

    Attributes:
        source: Where they are from, in words.
        num: How many.
        shape: (H, W, C).
        batches: From a number of images to batches of at most so many, uint8 [n, H, W, C], in order.
        about: What is known of them besides, as plain values: "seed", for example.
    """

    source: str
    num: int
    shape: tuple[int, int, int]
    batches: Callable[[int], Iterator[Pixels]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_array(cls, images: npt.ArrayLike, source: str = "an array", **about: Any) -> ImageSet:
        """Images in memory, uint8 [N, H, W, C].

        Raises:
            ValueError: another type or shape.
        """
        pixels = np.asarray(images)
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or not len(pixels):
            raise ValueError(f"images must be uint8 [N, H, W, C], got {pixels.dtype} {list(pixels.shape)}")
        height, width, channels = pixels.shape[1:]

        def batches(size: int) -> Iterator[Pixels]:
            return (pixels[first : first + size] for first in range(0, len(pixels), size))

        return cls(source, len(pixels), (height, width, channels), batches, about)

    @classmethod
    def of_source(cls, data: ImageSource) -> ImageSet:
        """Images as a training reads them; values of other than 8 bits are rounded to 8."""
        channels, height, width = data.shape

        def batches(size: int) -> Iterator[Pixels]:
            for first in range(0, len(data), size):
                stored = data.read(np.arange(first, min(first + size, len(data))))
                pixels = stored if data.scaling.levels == 256 else to_uint8(data.scaling.to_model(stored))
                yield np.ascontiguousarray(pixels.to(torch.uint8).permute(0, 2, 3, 1).numpy())

        return cls(data.source, len(data), (height, width, channels), batches)


def open_set(source: str | Path, options: DataOptions | None = None) -> ImageSet:
    """Images from any source that a training reads: a folder, an .npz as ADM's evaluation has it, a ZIP, "digits".

    Args:
        source: See `fastdiff.data.open_images`.
        options: How they are read. They stay on the disk where they can.

    Raises:
        ValueError: what lies there is no images.
    """
    given = options or DataOptions()
    if given.storage is None and _can_stay(source):
        given = replace(given, storage="disk")
    return ImageSet.of_source(open_images(source, given))


def open_reference(source: str | Path, options: DataOptions | None = None) -> ImageSet | Gaussian:
    """What samples are held against: images, or EDM's statistics, a .npz with mu and sigma and without images.

    Raises:
        ValueError: it is neither.
    """
    return Gaussian.load(source) if _is_statistics(Path(source)) else open_set(source, options)


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {member.filename: member for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile):
        # Whoever reads it says what is wrong.
        return {}


def _is_statistics(path: Path) -> bool:
    if path.suffix.lower() != ".npz":
        return False
    names = set(_members(path))
    return {"mu.npy", "sigma.npy"} <= names and not names & {"arr_0.npy", "images.npy"}


def _can_stay(source: str | Path) -> bool:
    """Whether images are read from the disk as they are needed."""
    path = Path(source)
    if path.is_dir() and source != "digits":
        return not is_cifar10(path)
    if path.suffix.lower() == ".npz":
        return all(member.compress_type == zipfile.ZIP_STORED for member in _members(path).values())
    return path.suffix.lower() in (".npy", ".zip")
