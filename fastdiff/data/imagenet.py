"""ImageNet as it is given out: train/n01440764/*.JPEG and so on, and val/ with a list of its labels."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastdiff.data.pictures import FolderFiles
from fastdiff.files.images import list_images
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import shown

__all__ = ["is_imagenet", "open_imagenet"]

_WORDNET = re.compile(r"n\d{8}")
# Lists that stand beside val/: Kaggle's, and Caffe's "ILSVRC2012_val_00000001.JPEG 65".
_LISTS = ("LOC_val_solution.csv", "val.txt")


def is_imagenet(folder: Path) -> bool:
    """Whether a folder holds train/ or val/ with folders of WordNet's numbers."""
    return any(_classes(folder / part) for part in ("train", "val"))


def open_imagenet(
    folder: str | Path, *, split: Literal["train", "val"] = "train", labels: str | Path | None = None
) -> tuple[FolderFiles, Tensor, tuple[str, ...]]:
    """The pictures of one part of ImageNet, their labels, and WordNet's number of each class.

    Classes are counted in the order of their WordNet numbers, as everybody does.

    Args:
        folder: The folder with train/ and val/.
        split: "train" or "val".
        labels: Of a val/ without folders of classes, a list of its labels: Kaggle's LOC_val_solution.csv, or lines of a
            file's name and a number from 0 up or a WordNet number. None looks for LOC_val_solution.csv and val.txt
            beside val/.

    Raises:
        ValueError: an unknown split; the folder is missing; there is no list, or none that names all pictures.
    """
    folder = Path(folder)
    if split not in ("train", "val"):
        raise ValueError(f"{spelt('split')} must be 'train' or 'val', got {shown(split)}")
    root = folder / split
    names = [path.as_posix() for path in list_images(root)]
    classes = _classes(folder / "train") or _classes(root)
    number = {name: index for index, name in enumerate(classes)}
    if all("/" in name for name in names):
        unknown = next((name for name in names if name.split("/")[0] not in number), None)
        if unknown is not None:
            raise ValueError(f"{root}: {unknown} lies in no folder of a class, such as n01440764")
        found = [number[name.split("/")[0]] for name in names]
        return FolderFiles(root, names), torch.tensor(found), tuple(classes)
    beside = next((folder / name for name in _LISTS if (folder / name).is_file()), None)
    path = beside if labels is None else Path(labels)
    if path is None:
        raise ValueError(
            f"{root}: its pictures lie in no folders of classes, and there is no {' or '.join(_LISTS)} beside it: "
            f"give {advised('labels', 'val.txt')}"
        )
    known = _listed(path, number)
    missing = next((name for name in names if Path(name).stem not in known), None)
    if missing is not None:
        raise ValueError(f"{path}: there is no label for {missing}")
    return FolderFiles(root, names), torch.tensor([known[Path(name).stem] for name in names]), tuple(classes)


def _classes(folder: Path) -> list[str]:
    """The folders of classes, by WordNet's numbers."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _WORDNET.fullmatch(path.name) and path.is_dir())


def _listed(path: Path, number: dict[str, int]) -> dict[str, int]:
    """Labels by the stems of files' names."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    lines = text.splitlines()
    if path.suffix.lower() == ".csv":
        rows = [(row[0], row[1].split(" ")[0]) for row in csv.reader(lines[1:]) if len(row) > 1]
    else:
        rows = [(parts[0], parts[1]) for parts in map(str.split, lines) if len(parts) == 2]
    found = {}
    for name, label in rows:
        place = number.get(label) if _WORDNET.fullmatch(label) else int(label) if label.isdecimal() else None
        if place is None or (number and place >= len(number)):
            raise ValueError(
                f"{path}: the label of {name} must be one of {len(number)} classes, by number from 0 or by WordNet's "
                f"number, got {shown(label)}"
            )
        found[Path(name).stem] = place
    if not found:
        raise ValueError(f"{path}: there are no lines of a file's name and a label")
    return found
