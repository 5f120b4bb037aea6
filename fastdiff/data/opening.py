"""Images from any source: which kind it is, where its images are kept, and the options that each kind takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.archive import LABELS_FILE, ZipFiles, labels_of_json
from fastdiff.data.arrays import MappedImages, map_array
from fastdiff.data.cache import cached
from fastdiff.data.cifar import is_cifar10, load_cifar10
from fastdiff.data.imagenet import is_imagenet, open_imagenet
from fastdiff.data.pictures import FolderFiles, PictureFiles, PictureImages, open_pictures
from fastdiff.data.reading import ReadAhead
from fastdiff.data.source import ImageSource
from fastdiff.data.tables import is_table, open_table
from fastdiff.files.data import ImageData, digits, load_array, load_folder
from fastdiff.files.decoding import Crop, Decoding, Size, height_and_width
from fastdiff.files.images import list_images
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import shown, whole_number

__all__ = ["KINDS", "DataOptions", "open_images"]

Storage = Literal["memory", "disk"]

_PICTURES = ("size", "channels", "crop", "resize", "levels", "storage", "cache", "workers", "skip_corrupt")
_ARRAY = ("layout", "labels", "levels", "size", "crop", "storage", "cache")
KINDS = {
    "digits": ("the digits", ("split",)),
    "folder": ("a folder of images", _PICTURES),
    "array": ("a NumPy file", _ARRAY),
    "zip": ("a ZIP", _PICTURES),
    "cifar10": ("CIFAR-10", ("split",)),
    "imagenet": ("ImageNet", (*_PICTURES, "split", "labels")),
    "table": ("a data set of Hugging Face", (*_PICTURES, "split", "columns")),
}
"""Kinds of sources: what they are called, and the options that they take."""

WHAT_IT_IS = (
    "'digits', a folder of images, a .npz or .npy file, a .zip of images, or a folder of CIFAR-10, ImageNet or a data "
    "set of Hugging Face"
)


@dataclass(frozen=True)
class DataOptions:
    """How images are read; None leaves it to the kind of source.

    Attributes:
        split: Of the digits and CIFAR-10 "train", "test" or "all"; of ImageNet "train" or "val"; of a data set of
            Hugging Face one of its own.
        size: Side of an image in pixels, or [height, width]. Pictures are resized until they cover it, and cut;
            of arrays it is what is cut out.
        channels: Of pictures: 1, 3 or 4; None is 1 where all are grey, else 3.
        layout: Of a four-dimensional array: "NHWC" or "NCHW".
        labels: A .npy of labels beside an array, or a list of those of ImageNet's val.
        levels: Number of values: 65536 reads 16-bit grey pictures; of arrays, how many of their type's are used.
        columns: Of a data set of Hugging Face: {"image": NAME, "label": NAME}.
        crop: What is cut out: the "center", or a "random" place that each step draws.
        resize: False cuts pictures without resizing them.
        storage: "memory" holds all images; "disk" decodes, or maps, those of a step. By default arrays, folders and
            CIFAR-10 are held and the others are not; random crops, workers and a cache are "disk".
        cache: A folder, in which pictures are kept decoded and a compressed .npz extracted.
        workers: Threads that decode; by default one for each processor, 8 at most.
        skip_corrupt: Read another picture in the place of one that cannot be read; see `PictureImages`.
    """

    split: str | None = None
    size: Size | None = None
    channels: Literal[1, 3, 4] | None = None
    layout: Literal["NHWC", "NCHW"] | None = None
    labels: str | None = None
    levels: int | None = None
    columns: Mapping[str, str] | None = None
    crop: Crop | None = None
    resize: bool | None = None
    storage: Storage | None = None
    cache: str | None = None
    workers: int | None = None
    skip_corrupt: bool | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            height_and_width(self.size)
        if self.storage not in (None, "memory", "disk"):
            raise ValueError(f"{spelt('storage')} must be 'memory' or 'disk', got {shown(self.storage)}")
        for name in ("resize", "skip_corrupt"):
            if getattr(self, name) not in (None, True, False):
                raise ValueError(f"{spelt(name)} must be true or false, got {shown(getattr(self, name))}")
        for name in ("labels", "cache", "split", "layout"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str | os.PathLike):
                raise ValueError(f"{spelt(name)} must be a text, got {shown(getattr(self, name))}")
        if self.workers is not None:
            whole_number(spelt("workers"), self.workers, low=1, high=256, strict=True)
        if self.columns is not None and not (
            isinstance(self.columns, Mapping) and all(isinstance(name, str) for name in self.columns.values())
        ):
            raise ValueError(
                f"{spelt('columns')} must be names of columns by image and label, got {shown(self.columns)}"
            )
        wants_disk = [name for name in ("cache", "workers", "skip_corrupt") if getattr(self, name)]
        wants_disk += ["crop"] if self.crop == "random" else []
        if self.storage == "memory" and wants_disk:
            raise ValueError(f"{spelt(wants_disk[0])} needs {spelt('storage')} 'disk', got 'memory'")

    def on_disk(self, default: bool) -> bool:
        """Whether images are read as they are needed."""
        if self.storage is not None:
            return self.storage == "disk"
        return default or bool(self.cache or self.workers or self.skip_corrupt or self.crop == "random")

    @property
    def decoding(self) -> Decoding:
        """How the pixels of pictures are made."""
        deep = False
        if self.levels is not None:
            deep = whole_number(spelt("levels"), self.levels, strict=True) == 65536
            if self.levels not in (256, 65536):
                raise ValueError(f"pictures have 256 or 65536 {spelt('levels')}, got {self.levels}")
        size = None if self.size is None else height_and_width(self.size)
        return Decoding(size, self.channels, self.crop or "center", self.resize is not False, deep)


def open_images(source: str | Path, options: DataOptions | None = None) -> ImageSource:
    """Images from any source that is known.

    Args:
        source: "digits" (a folder of that name: "./digits"); a folder of images; a .npz or .npy file; a .zip of images,
            with EDM's dataset.json or without; a folder of CIFAR-10's batches (cifar-10-batches-py or -bin), of
            ImageNet (with train/n01440764/...), or of a data set that `datasets` saved.
        options: How they are read.

    Raises:
        ValueError: none of these, an option that does not belong to the source, or the source's own errors.
        RuntimeError: a library that reads the source is not installed.
    """
    options = options or DataOptions()
    kind = _kind(source)
    called, taken = KINDS[kind]
    for field in fields(options):
        value = getattr(options, field.name)
        if value is not None and field.name not in taken:
            raise ValueError(
                f"{called} takes no {spelt(field.name)} (got {value!r}); it takes {', '.join(map(advised, taken))}"
            )
    path = Path(source)
    split: Any = options.split
    if kind == "digits":
        return digits(split or "train")
    if kind == "cifar10":
        return load_cifar10(path, split=split or "train")
    if kind == "array":
        return _array(path, options)
    if kind == "folder" and not options.on_disk(False) and _is_plain(path, options):
        return load_folder(path, size=options.size, channels=options.channels)
    files, labels, names = _files(kind, path, options)
    pictures = open_pictures(
        files,
        options.decoding,
        labels=labels,
        label_names=names,
        source=str(source) if options.split is None else f"{source}/{options.split}",
        workers=options.workers or min(8, os.cpu_count() or 1),
        skip_corrupt=bool(options.skip_corrupt),
    )
    if options.cache is not None:
        return cached(pictures, options.cache)
    return pictures if options.on_disk(kind != "folder") else _in_memory(pictures)


def _kind(source: str | Path) -> str:
    """Which of `KINDS` a source is."""
    if source == "digits":
        return "digits"
    path = Path(source)
    if path.is_dir() and source != "":
        is_kind = {"table": is_table, "cifar10": is_cifar10, "imagenet": is_imagenet}
        return next((kind for kind, test in is_kind.items() if test(path)), "folder")
    kind = {".npz": "array", ".npy": "array", ".zip": "zip"}.get(path.suffix.lower())
    if path.is_file() and kind is not None:
        return kind
    what = "is not one of them" if path.exists() else "does not exist"
    raise ValueError(f"{spelt('data', 'a source')} is {WHAT_IT_IS}; {str(source)!r} {what}")


def _is_plain(folder: Path, options: DataOptions) -> bool:
    """Whether a folder is read as `load_folder` does."""
    return options.resize is not False and options.levels is None and not (folder / LABELS_FILE).is_file()


def _array(path: Path, options: DataOptions) -> ImageData | MappedImages:
    if not options.on_disk(options.size is not None):
        if options.size is not None:
            raise ValueError(
                f"of arrays in memory nothing is cut out: leave out {spelt('size')}, or {spelt('storage')}"
            )
        return load_array(path, layout=options.layout, labels=options.labels, levels=options.levels)
    return map_array(
        path,
        layout=options.layout,
        labels=options.labels,
        levels=options.levels,
        size=options.size,
        crop=options.crop or "center",
        cache=None if options.cache is None else Path(options.cache),
    )


def _files(kind: str, path: Path, options: DataOptions) -> tuple[PictureFiles, Tensor | None, tuple[str, ...] | None]:
    """The pictures of a source, their labels and the names of the classes."""
    if kind == "zip":
        archive = ZipFiles(path)
        return archive, *archive.labels()
    if kind == "imagenet":
        split: Any = options.split or "train"
        return open_imagenet(path, split=split, labels=options.labels)
    if kind == "table":
        return open_table(path, split=options.split, columns=options.columns)
    names = [file.as_posix() for file in list_images(path)]
    files = FolderFiles(path, names)
    if (path / LABELS_FILE).is_file():
        text = (path / LABELS_FILE).read_bytes()
        return files, labels_of_json(str(path / LABELS_FILE), text, names), None
    if not all("/" in name for name in names):
        return files, None, None
    classes = tuple(sorted({name.split("/")[0] for name in names}))
    number = {name: index for index, name in enumerate(classes)}
    return files, torch.tensor([number[name.split("/")[0]] for name in names]), classes


def _in_memory(pictures: PictureImages) -> ImageData:
    """All of them, decoded."""
    images = ReadAhead(pictures).read((0, b""), np.arange(len(pictures)), None)
    if pictures.decoding.deep:
        images = images.to(torch.uint16)
    return ImageData(images, pictures.labels, pictures.scaling, pictures.source, pictures.label_names)
