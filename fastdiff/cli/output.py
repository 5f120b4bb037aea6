"""Where a command writes to: looked at before the work is done, and never written over unasked."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.process.checks import shown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageFolder", "OverwriteOption", "Parts", "check_free", "check_holds", "check_writable"]

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what lies at --out.")]

RECORD_FILE = ".fastdiff-sample.json"
"""In a folder of samples: what they are samples of."""

_IMAGE = re.compile(r"(\d{6,})\.png")
_PART = re.compile(r"(\d+)-(\d+)\.npy")


def check_free(path: Path, suffixes: Sequence[str], *, overwrite: bool = False, option: str = "--out") -> None:
    """Raise ValueError unless a file may be made at `path`: a known suffix, nothing there unless it may go."""
    if path.suffix.lower() not in suffixes:
        verb = "takes" if option == "--out" else "writes"
        raise ValueError(f"{option} {verb} a {' or a '.join(suffixes)}, got {shown(str(path))}")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: give the name of a file")
    if path.exists() and not overwrite:
        raise ValueError(f"{option} {path} exists already: choose another name, or give --overwrite")


def check_writable(folder: Path, name: str | None = None) -> None:
    """Raise ValueError unless files can be made in the folder, which is made itself.

    Args:
        folder: Where to.
        name: A file that is to be made there: what commands that were killed left of it is deleted.
    """
    from fastdiff.files.atomic import remove_stale

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.{secrets.token_hex(4)}.partial"
        probe.touch(exist_ok=False)
        probe.unlink()
        if name is not None:
            remove_stale(folder, glob.escape(name))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from error


def check_holds(suffix: str, channels: int, levels: int | None) -> None:
    """Raise ValueError unless a format keeps images of so many channels and values.

    Args:
        suffix: ".png", which a folder of images has as well, ".npz" or ".npy".
        channels: Of the images.
        levels: Values of a pixel; None for continuous ones, of which 8 bits are shown.
    """
    if suffix == ".npy":
        return
    if suffix == ".png" and channels not in (1, 3, 4):
        raise ValueError(
            f"a {suffix} holds 1, 3 or 4 channels, and the model's images have {channels}: "
            "--out NAME.npy keeps them, as float32 in [-1, 1]"
        )
    if levels is not None and levels > 256:
        raise ValueError(
            f"a {suffix} holds 256 values, and the model's pixels have {levels}: "
            "--out NAME.npy keeps them, as float32 in [-1, 1]"
        )


class ImageFolder:
    """A folder of samples, 000000.png and on, which a stopped command leaves and the same command goes on with.

    What the samples are is written beside them, in a hidden file. Where it says the same, images that lie there are
    taken as done; where it does not, or where other files lie, the folder is refused.

    Args:
        path: The folder.
        about: What decides an image besides its number, for JSON.
        overwrite: Delete the samples that lie there. Other files are never deleted.

    Raises:
        ValueError: The folder holds something else, or cannot be written to.
    """

    def __init__(self, path: Path, about: dict[str, Any], *, overwrite: bool = False) -> None:
        from fastdiff.files.atomic import partial_of, remove_stale, write_text

        self.path = path
        record = path / RECORD_FILE
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        ours = [name for name in names if _is_ours(name)]
        partial = [name for name in names if _is_ours(partial_of(name) or "")]
        others = [name for name in names if name not in ours and name not in partial]
        same = _read_record(record) == about
        if others and (overwrite or not same):
            raise ValueError(
                f"--out {path} holds {shown(others[0])}, which is no sample: choose another folder, or a new one"
            )
        if ours and not same and not overwrite:
            raise ValueError(
                f"--out {path} holds {len(ours)} files that are not samples of this model with these settings: "
                "choose another folder, or give --overwrite to delete them"
            )
        check_writable(path)
        for name in {partial_of(name) or "" for name in partial}:
            remove_stale(path, glob.escape(name))
        if overwrite:
            for name in ours:
                (path / name).unlink()
        if overwrite or not same:
            write_text(record, json.dumps(about) + "\n")

    def missing(self, ids: Sequence[int]) -> list[int]:
        """Positions in `ids` of the samples that are not there yet."""
        return [place for place, number in enumerate(ids) if not (self.path / f"{number:06d}.png").exists()]

    def write(self, images: Tensor, ids: Sequence[int]) -> None:
        """Write samples under their numbers."""
        from fastdiff.files.images import write_images

        for image, number in zip(images, ids, strict=True):
            write_images(self.path, image[None], start=number)


class Parts:
    """What is done of the samples that go into one file, in a hidden folder beside it, from which a rerun goes on.

    The folder's name says what the samples are: a command with other settings has a folder of its own. It is made with
    the first part that is put aside.

    Args:
        out: The file.
        about: What decides a sample besides its number, for JSON.
        shape: [C, H, W] of a sample.
    """

    def __init__(self, out: Path, about: dict[str, Any], shape: Sequence[int]) -> None:
        self.out = out
        self.shape = tuple(shape)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.path = out.with_name(f".{out.name}.{key}.parts")

    def missing(self, ids: Sequence[int]) -> list[int]:
        """Positions in `ids` of the samples that have not been put aside."""
        kept = [range(first, last + 1) for first, last, _ in self._files()]
        return [place for place, number in enumerate(ids) if not any(number in part for part in kept)]

    def write(self, images: Tensor, ids: Sequence[int]) -> None:
        """Put samples [n, C, H, W] aside, those of consecutive numbers in one file."""
        import numpy as np

        from fastdiff.files.atomic import atomic_file

        first = 0
        for place in range(1, len(ids) + 1):
            if place == len(ids) or ids[place] != ids[place - 1] + 1:
                with atomic_file(self.path / f"{ids[first]}-{ids[place - 1]}.npy") as file:
                    np.save(file, images[first:place].float().numpy())
                first = place

    def read(self, ids: Sequence[int], fresh: Tensor | None) -> Tensor:
        """The samples of these numbers, in their order.

        Args:
            ids: All of the numbers.
            fresh: Those that `missing` named and that were not put aside since, in their order; None for none.

        Raises:
            ValueError: A part is damaged; it is deleted, and the same command makes it again.
        """
        import torch

        found = torch.empty(len(ids), *self.shape)
        left = set(self.missing(ids))
        for first, last, path in self._files():
            places = [place for place, number in enumerate(ids) if first <= number <= last]
            if places:
                part = self._read_part(path, last + 1 - first)
                found[places] = part[[ids[place] - first for place in places]]
        if left:
            assert fresh is not None
            found[sorted(left)] = fresh.float()
        return found

    def _read_part(self, path: Path, num: int) -> Tensor:
        import numpy as np
        import torch

        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            array = np.empty(0)
        if array.dtype != np.float32 or array.shape != (num, *self.shape):
            path.unlink(missing_ok=True)
            raise ValueError(f"{path} was damaged and is deleted; the same command samples it again")
        return torch.from_numpy(array)

    def delete(self) -> None:
        """Delete what was put aside for this file, by commands of other settings as well."""
        for folder in self.out.parent.glob(f".{glob.escape(self.out.name)}.*.parts"):
            shutil.rmtree(folder, ignore_errors=True)

    def _files(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in self.path.glob("*.npy"):
            match = _PART.fullmatch(path.name)
            if match:
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_ours(name: str) -> bool:
    return name == RECORD_FILE or _IMAGE.fullmatch(name) is not None
