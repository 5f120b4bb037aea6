"""Pictures in a ZIP, as EDM's and StyleGAN's tools write it: PNG files, and dataset.json with their labels."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.digest import listing_digest
from fastdiff.files.images import SUFFIXES
from fastdiff.process.checks import shown

__all__ = ["ZipFiles", "labels_of_json", "open_zip"]

LABELS_FILE = "dataset.json"
# Of a picture, or of the labels.
_MOST_BYTES = 1 << 30


class ZipFiles:
    """Pictures in a ZIP.

    Args:
        path: The ZIP.

    Raises:
        ValueError: it is damaged, or a member is encrypted, has a path that leaves the archive, or no image is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            members = [member for member in self._archive.infolist() if not member.is_dir()]
        # A damaged directory surfaces as a number of things.
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            raise ValueError(f"{path}: damaged, cannot be read as a ZIP ({error})") from error
        for member in members:
            name = member.filename
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name[:3]:
                raise ValueError(f"{path}: {shown(name)} leaves the archive: such a file is not read, write it anew")
            if member.flag_bits & 1:
                raise ValueError(f"{path}: {name} is encrypted: write the archive without a password")
        pictures = [member for member in members if member.filename.lower().endswith(SUFFIXES)]
        self._members = sorted(pictures, key=lambda member: member.filename)
        if not self._members:
            raise ValueError(
                f"{path}: no images in it; looked for {' '.join(SUFFIXES)}, saw {len(members)} other files"
            )

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        """Inside the archive."""
        return self._members[index].filename

    def open(self, index: int) -> BinaryIO:
        """The bytes of a member, compared with its CRC-32."""
        return BytesIO(self.contents(self._members[index]))

    def contents(self, member: zipfile.ZipInfo) -> bytes:
        """The bytes of a member.

        Raises:
            ValueError: it is damaged, or larger than a picture may be.
        """
        if member.file_size > _MOST_BYTES:
            raise ValueError(f"{member.file_size} bytes are more than a picture may have")
        try:
            return self._archive.read(member)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"damaged in {self.path} ({error})") from error

    def labels(self) -> tuple[Tensor | None, tuple[str, ...] | None]:
        """The labels that dataset.json has.

        Raises:
            ValueError: it is not as EDM's tool writes it, or does not have a label for each picture.
        """
        found = [member for member in self._archive.infolist() if member.filename == LABELS_FILE]
        if not found:
            return None, None
        names = [member.filename for member in self._members]
        try:
            text = self.contents(found[0])
        except ValueError as error:
            raise ValueError(f"{self.path}: {LABELS_FILE}: {error}") from error
        return labels_of_json(f"{self.path}: {LABELS_FILE}", text, names), None

    def digest(self) -> str:
        """Of names, sizes and CRC-32 of all pictures, which the archive's directory has: all contents are covered."""
        return listing_digest((member.filename, member.file_size, member.CRC) for member in self._members)

    def stamp(self) -> str:
        """As `digest`, with the archive's time of change."""
        return listing_digest([(self.digest(), os.stat(self.path).st_mtime_ns)])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def open_zip(path: str | Path) -> tuple[ZipFiles, Tensor | None]:
    """The pictures of a ZIP, and their labels where it has some."""
    files = ZipFiles(Path(path))
    return files, files.labels()[0]


def labels_of_json(what: str, text: bytes, names: list[str]) -> Tensor | None:
    """Labels of pictures from EDM's dataset.json: {"labels": [["00000/img00000000.png", 6], ...]}, or null.

    Args:
        what: The file, for messages.
        text: What it holds.
        names: Of the pictures, whose labels are wanted.

    Returns:
        int64 [N], in the order of `names`.

    Raises:
        ValueError: it is no such file, a picture has no label, or a label is no whole number from 0 up.
    """
    try:
        held = json.loads(text)
        pairs = held["labels"] if isinstance(held, Mapping) else held
        if pairs is None:
            return None
        known = {str(name): label for name, label in pairs}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{what}: expected {{'labels': [[name, number], ...]}}, got something else ({error})"
        ) from error
    missing = next((name for name in names if name not in known), None)
    if missing is not None:
        raise ValueError(f"{what}: there is no label for {missing}")
    labels = [known[name] for name in names]
    wrong = next((label for label in labels if type(label) is not int or not 0 <= label < 2**31), None)
    if wrong is not None:
        raise ValueError(f"{what}: labels must be whole numbers from 0 up, got {shown(wrong)}")
    return torch.from_numpy(np.array(labels, np.int64))
