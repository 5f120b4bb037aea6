"""Images in a .npy or .npz that stay on the disk: the file is mapped into memory, and read where a step needs it."""

from __future__ import annotations

import math
import mmap
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.digest import file_digest, listing_digest
from fastdiff.data.locks import cache_lock
from fastdiff.data.source import UnreadableImageError
from fastdiff.files.atomic import atomic_file
from fastdiff.files.data import labels_of, scaling_of
from fastdiff.files.decoding import Crop, Size, crop_offsets, height_and_width
from fastdiff.files.images import as_nchw, read_arrays
from fastdiff.files.scaling import DataScaling
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import shown

__all__ = ["Digests", "MappedImages", "map_array"]

# Bytes before the name in a ZIP's local header.
_LOCAL_HEADER = 30


class Digests(NamedTuple):
    """Digests of a set without its labels and with them; the same where there are none."""

    images: str
    with_labels: str


@dataclass(frozen=True, eq=False, repr=False)
class MappedImages:
    """Images in an array that is mapped into memory.

    That values fit the scaling is checked as they are read: a check beforehand would read all of them.

    Attributes:
        array: [N, C, H, W] as stored: uint8, uint16 or float of any width.
        labels: int64 [N]; None without classes.
        scaling: How stored values map to [-1, 1].
        source: The file.
        digests: Of what the checkpoint says of the data, with labels and without.
        label_names: Of the classes; None when there are none.
        size: (height, width) of what is cut out of each image; None takes all of it.
        crop: Where it is cut out.
        complete: Whether the digests are SHA-256 of all values, as those of data in memory.
    """

    array: NDArray[Any]
    labels: Tensor | None
    scaling: DataScaling
    source: str
    digests: Digests
    label_names: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    crop: Crop = "center"
    complete: bool = False

    def __post_init__(self) -> None:
        stored = self.array.shape[2:]
        if self.crop not in ("center", "random"):
            raise ValueError(f"{spelt('crop')} must be 'center' or 'random', got {shown(self.crop)}")
        if self.size is not None and (self.size[0] > stored[0] or self.size[1] > stored[1]):
            raise ValueError(
                f"{self.source}: {self.size[1]}x{self.size[0]} pixels cannot be cut out of images of "
                f"{stored[1]}x{stored[0]}; arrays are not resized"
            )
        if self.crop == "random" and self.size is None:
            raise ValueError(f"a random crop needs the size of what is cut out: give {advised('size', 64)}")

    def __len__(self) -> int:
        return len(self.array)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        kind = "continuous" if self.scaling.levels is None else f"{self.scaling.levels} levels"
        labels = "no labels" if self.labels is None else "labels"
        return f"MappedImages({len(self)} images of {shape}, {kind}, {labels}, source={self.source!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image, as it is read."""
        _, channels, height, width = self.array.shape
        return (channels, height, width) if self.size is None else (channels, *self.size)

    @property
    def num_draws(self) -> int:
        """2 for random crops, else 0."""
        return 2 if self.crop == "random" else 0

    @property
    def workers(self) -> int:
        """1: a page that is not in memory is waited for beside the step."""
        return 1

    def read(self, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None = None) -> Tensor:
        """The images of these numbers, [n, C, H, W]; see `ImageSource.read`."""
        self._check_file()
        channels, height, width = self.shape
        kind: Any = np.float32 if self.scaling.levels is None else self.array.dtype
        pixels = np.empty((len(indices), channels, height, width), kind)
        for place, index in enumerate(indices):
            image = self.array[index]
            if self.size is not None:
                words = draws[place] if draws is not None and self.crop == "random" else None
                top, left = crop_offsets(image.shape[1:], self.size, words)
                image = image[:, top : top + height, left : left + width]
            pixels[place] = image
        self._check_values(indices, pixels)
        return torch.from_numpy(pixels.astype(np.int32) if kind == np.uint16 else pixels)

    def describe(self, *, with_labels: bool) -> dict[str, Any]:
        """Size, shape and the file's digest, and the crop."""
        about: dict[str, Any] = {"source": self.source, "num_images": len(self), "shape": list(self.shape)}
        digest = self.digests.with_labels if with_labels else self.digests.images
        about |= {"sha256": digest} if self.complete else {"storage": "disk", "digest": digest}
        if self.size is not None:
            about["crop"] = self.crop
        return about | ({"classes": list(self.label_names)} if with_labels and self.label_names else {})

    def check(self) -> None:
        """Nothing: values are checked as they are read."""

    def _check_file(self) -> None:
        """Raise UnreadableImageError where the file has shrunk, of which a page that is gone would kill the process.

        A file that shrinks between this and the read still does.
        """
        whole: Any = self.array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if isinstance(whole, np.memmap) and isinstance(whole.base, mmap.mmap):
            end, size = whole.offset + whole.nbytes, whole.base.size()
            if size < end:
                raise UnreadableImageError(
                    f"{self.source}: its images took {end:,} bytes when it was opened, and it has {size:,} now: "
                    "something has written to it since; restore it and start again, and put new data under another name"
                )

    def _check_values(self, indices: NDArray[np.int64], pixels: NDArray[Any]) -> None:
        levels = self.scaling.levels
        if levels is not None:
            if levels >= (256 if pixels.dtype == np.uint8 else 65536):
                return
            fits, expected = pixels < levels, f"in 0..{levels - 1}"
        else:
            # NaN compares as False.
            fits, expected = np.abs(pixels) <= 1, "numbers in [-1, 1]"
        if not fits.all():
            place = int(np.argmin(fits.reshape(len(indices), -1).all(axis=1)))
            value = pixels[place].reshape(-1)[int(np.argmin(fits[place]))]
            raise UnreadableImageError(
                f"{self.source}: the values of image {indices[place]} must be {expected}, got {value}"
            )


def map_array(
    path: str | Path,
    *,
    layout: str | None = None,
    labels: str | Path | None = None,
    levels: int | None = None,
    size: Size | None = None,
    crop: Crop = "center",
    cache: Path | None = None,
) -> MappedImages:
    """Images of a .npy or .npz as `load_array` reads them, left on the disk.

    Args:
        path, layout, labels, levels: As of `fastdiff.data.load_array`.
        size: Side or (height, width) of what is cut out of each image; None takes all of it.
        crop: Where: "center", or "random" for a place that each step draws.
        cache: Folder to extract the images of a compressed .npz to, once. None refuses such a file.

    Raises:
        ValueError: the file is missing, damaged, compressed or not as `load_array` wants it.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        array, others, digest = _open_archive(path, cache)
    else:
        array, others, digest = read_arrays(path, ("arr_0",))["arr_0"], {}, file_digest(path)
    scaling = scaling_of(path, array.dtype, levels)
    pixels = as_nchw(array, layout, path=path)
    found = labels_of(path, others, labels, len(pixels))
    with_labels = digest if labels is None else listing_digest([(digest, file_digest(labels))])
    cut = None if size is None else height_and_width(size)
    return MappedImages(pixels, found, scaling, str(path), Digests(digest, with_labels), size=cut, crop=crop)


def _open_archive(path: Path, cache: Path | None) -> tuple[NDArray[Any], dict[str, NDArray[Any]], str]:
    """The images of a .npz, mapped; its labels, if there are some; and its digest.

    The directory of a ZIP has the CRC-32 of each member: the digest covers all contents, and none is read for it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: damaged, cannot be read as a NumPy file ({error})") from error
    name = next((name for name in ("arr_0.npy", "images.npy") if name in members), None)
    if name is None:
        raise ValueError(f"{path}: images must be under the key 'arr_0' or 'images', got only {', '.join(members)}")
    digest = listing_digest((one.filename, one.file_size, one.CRC) for one in members.values())
    others = [key for key in ("arr_1", "labels") if f"{key}.npy" in members]
    labels = read_arrays(path, others) if others else {}
    if members[name].compress_type == zipfile.ZIP_STORED:
        return _map_member(path, members[name]), labels, digest
    if cache is None:
        raise ValueError(
            f"{path}: is compressed and cannot be read in place: give {advised('cache', 'FOLDER')}, where its images "
            "are extracted once, or write it with np.savez"
        )
    extracted = cache / f"{path.stem}-{digest[:16]}.npy"
    if not extracted.exists():
        with cache_lock(cache), atomic_file(extracted) as target, zipfile.ZipFile(path) as archive:
            try:
                with archive.open(name) as file:
                    shutil.copyfileobj(file, target, 1 << 20)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise ValueError(f"{path}: damaged, {name} cannot be read ({error})") from error
            except OSError as error:
                raise ValueError(f"{cache}: {name} cannot be extracted: {error.strerror or error}") from error
    return read_arrays(extracted, ("arr_0",))["arr_0"], labels, digest


def _map_member(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    """An array that a .npz holds uncompressed, mapped in place."""
    try:
        with path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER)
            if header[:4] != b"PK\x03\x04":
                raise ValueError("no header where the directory has one")
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
            start = file.tell()
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
            if dtype.hasobject:
                raise ValueError("it holds pickled Python objects, which can run code and are never loaded")
            size = file.tell() - start + math.prod(shape) * dtype.itemsize
            if size != member.file_size:
                raise ValueError(f"the array needs {size} bytes, the member has {member.file_size}")
            order: Any = "F" if fortran else "C"
            return np.memmap(path, dtype, "r", file.tell(), shape, order)
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged, {member.filename} cannot be read ({error})") from error
