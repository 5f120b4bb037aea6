"""Data sets of Hugging Face that lie on the disk, as `Dataset.save_to_disk` writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.digest import file_digest, listing_digest
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import check_keys, nearest_name, shown

__all__ = ["TableFiles", "is_table", "open_table"]

COLUMNS = ("image", "label")


def is_table(folder: Path) -> bool:
    """Whether a folder holds a data set of Hugging Face, or several by split."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


class TableFiles:
    """Pictures in a column of a table.

    Args:
        table: A `datasets.Dataset` whose images are not decoded.
        column: That of the images.
        fingerprint: Of the table as it was loaded.
    """

    def __init__(self, table: Any, column: str, fingerprint: str) -> None:
        self.table, self.column, self.fingerprint = table, column, fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        """The row."""
        return f"row {index} of column {self.column}"

    def open(self, index: int) -> str | BinaryIO:
        """The bytes that the row holds, or the file that it names.

        Raises:
            ValueError: it holds neither.
        """
        held = self.table[index][self.column]
        if isinstance(held, Mapping) and held.get("bytes") is not None:
            return BytesIO(held["bytes"])
        path = held.get("path") if isinstance(held, Mapping) else None
        if not path:
            raise ValueError("the row holds no image")
        return str(path)

    def digest(self) -> str:
        """Of the table's fingerprint, which follows from what was done to it, and of its files; see `file_digest`."""
        files = [(Path(one["filename"]).name, file_digest(one["filename"])) for one in self.table.cache_files]
        return listing_digest(files, rows=len(self), column=self.column, fingerprint=self.fingerprint)

    def stamp(self) -> str:
        """As `digest`, with the files' times of change."""
        times = [(self.digest(), *(os.stat(one["filename"]).st_mtime_ns for one in self.table.cache_files))]
        return listing_digest(times)


def open_table(
    folder: str | Path, *, split: str | None = None, columns: Mapping[str, str] | None = None
) -> tuple[TableFiles, Tensor | None, tuple[str, ...] | None]:
    """The pictures of a data set on the disk, their labels, and the names of the classes.

    Args:
        folder: What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.
        split: Which of several; needed where there are several.
        columns: Names of the columns, {"image": ..., "label": ...}. What is left out is the first column of images, and
            the first of class labels if there is one.

    Raises:
        ValueError: it cannot be read, or there is no such split or column, or a column holds something else.
        RuntimeError: datasets is not installed.
    """
    folder = Path(folder)
    try:
        import datasets
    except ImportError as error:
        raise RuntimeError(
            f'{folder} is read by datasets, which cannot be imported ({error}): pip install "fastdiff-ddpm[datasets]"'
        ) from error
    columns = dict(columns or {})
    check_keys(columns, COLUMNS, spelt("columns"))
    try:
        table = datasets.load_from_disk(str(folder))
    # What pyarrow raises on damaged files is anything.
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(f"{folder}: cannot be read as a data set of Hugging Face ({first})") from error
    if isinstance(table, datasets.DatasetDict):
        splits = list(table)
        if split is None and len(splits) > 1:
            raise ValueError(f"{folder} has the splits {', '.join(splits)}: give {advised('split', splits[0])}")
        if split is not None and split not in splits:
            raise ValueError(f"unknown {spelt('split')} {shown(split)}: {nearest_name(split, splits)}")
        table = table[split or splits[0]]
    elif split is not None:
        raise ValueError(f"{folder} has no splits, got {spelt('split')} {shown(split)}")
    features = table.features
    image = _column(folder, features, columns.get("image"), datasets.Image, "image")
    label = _column(folder, features, columns.get("label"), datasets.ClassLabel, "label")
    if image is None:
        raise ValueError(
            f"{folder}: no column holds images, got {', '.join(features)}: give {advised('columns', {'image': 'NAME'})}"
        )
    if not isinstance(features[image], datasets.Image):
        raise ValueError(f"{folder}: column {image!r} holds no images but {features[image]}: cast it to datasets.Image")
    labels, names = None, None
    if label is not None:
        labels = _labels(folder, label, table)
        if isinstance(features[label], datasets.ClassLabel):
            names = tuple(features[label].names)
            if int(labels.max()) >= len(names):
                raise ValueError(f"{folder}: labels must be in 0..{len(names) - 1}, got {int(labels.max())}")
    pictures = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return TableFiles(pictures, image, str(table._fingerprint)), labels, names


def _column(folder: Path, features: Mapping[str, Any], wanted: str | None, kind: type, what: str) -> str | None:
    """The column that was asked for, or the first of its kind."""
    if wanted is None:
        return next((name for name, feature in features.items() if isinstance(feature, kind)), None)
    if wanted not in features:
        raise ValueError(f"{folder}: unknown column {shown(wanted)} for the {what}s: {nearest_name(wanted, features)}")
    return wanted


def _labels(folder: Path, column: str, table: Any) -> Tensor:
    values = table.with_format("numpy", columns=[column])[:][column]
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"{folder}: column {column!r} must hold whole numbers, one for each image, got {array.dtype}")
    if array.size and int(array.min()) < 0:
        raise ValueError(f"{folder}: labels in column {column!r} must count from 0, got {int(array.min())}")
    return torch.from_numpy(array.astype(np.int64))
