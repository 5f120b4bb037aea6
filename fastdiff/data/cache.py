"""Pictures that are decoded once, into a file that is mapped into memory from then on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdiff.data.arrays import Digests, MappedImages
from fastdiff.data.digest import listing_digest
from fastdiff.data.locks import cache_lock
from fastdiff.data.pictures import PictureImages
from fastdiff.data.reading import ReadAhead
from fastdiff.files.atomic import atomic_folder
from fastdiff.files.images import read_arrays
from fastdiff.files.progress import watched
from fastdiff.process.arguments import spelt

__all__ = ["cached"]

_LOGGER = logging.getLogger("fastdiff.data")

IMAGES_FILE, ABOUT_FILE = "images.npy", "about.json"
_CHUNK = 256


def cached(pictures: PictureImages, folder: str | Path) -> MappedImages:
    """The pictures out of a cache, which is filled if it is not there.

    An entry is a folder of its own, found by the names, sizes and times of the files, by their labels and by how they
    are decoded: when they change, another is made. It appears whole or not at all. Processes that want the same one
    wait for the first.

    Args:
        pictures: What is decoded, without random crops.
        folder: Of the cache; it may be shared by several sets.

    Returns:
        Images whose digest is of all values, so that a run may change between them and the same data in memory.

    Raises:
        ValueError: crops are random, or the entry cannot be written.
        UnreadableImageError: a picture cannot be read.
    """
    if pictures.num_draws:
        raise ValueError(f"a cache holds one crop of each picture: leave out {spelt('cache')}, or crop the center")
    folder = Path(folder)
    labels = pictures.labels
    parts = (pictures.files.stamp(), *astuple(pictures.decoding), pictures.skip_corrupt)
    key = listing_digest([parts, () if labels is None else tuple(labels.tolist())])
    entry = folder / f"images-{key[:16]}"
    if not (entry / ABOUT_FILE).is_file():
        with cache_lock(folder):
            if not (entry / ABOUT_FILE).is_file():
                _fill(entry, pictures)
    try:
        about = json.loads((entry / ABOUT_FILE).read_text())
        shape, digests = tuple(about["shape"]), Digests(about["sha256"], about["sha256_with_labels"])
        array = read_arrays(entry / IMAGES_FILE, ("arr_0",))["arr_0"]
        if array.shape != shape or shape != (len(pictures), *pictures.shape):
            raise ValueError(f"images of shape {list(array.shape)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{entry}: damaged ({error}): remove it, and it is made anew") from error
    return MappedImages(array, labels, pictures.scaling, pictures.source, digests, pictures.label_names, complete=True)


def _fill(entry: Path, pictures: PictureImages) -> None:
    shape = (len(pictures), *pictures.shape)
    kind = np.dtype(np.uint16 if pictures.decoding.deep else np.uint8)
    needed, free = int(np.prod(shape)) * kind.itemsize, shutil.disk_usage(entry.parent).free
    if needed > free:
        raise ValueError(f"{entry.parent}: the cache needs {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free")
    _LOGGER.info("decoding %d pictures of %s into %s", len(pictures), pictures.source, entry)
    digest = hashlib.sha256()
    try:
        # Written and not mapped: a full disk is then an error, and not a signal.
        with atomic_folder(entry) as partial, (partial / IMAGES_FILE).open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            with watched("decoding", len(pictures), unit="pictures", shows=False, logger=_LOGGER) as show:
                done = 0
                for pixels in _decoded(pictures):
                    values = np.ascontiguousarray(pixels.astype(kind, copy=False))
                    file.write(values.data)
                    digest.update(values.data)
                    done += len(values)
                    show(done, "")
            about = {"source": pictures.source, "shape": list(shape), "sha256": digest.hexdigest()}
            if pictures.labels is not None:
                digest.update(pictures.labels.numpy().tobytes())
            about["sha256_with_labels"] = digest.hexdigest()
            (partial / ABOUT_FILE).write_text(json.dumps(about))
    except OSError as error:
        raise ValueError(f"{entry}: the cache cannot be written: {error.strerror or error}") from error


def _decoded(pictures: PictureImages) -> Iterator[NDArray[np.generic]]:
    """All pictures in order, in chunks, the next one read ahead."""
    reader = ReadAhead(pictures)
    chunks = [np.arange(first, min(first + _CHUNK, len(pictures))) for first in range(0, len(pictures), _CHUNK)]
    for number, chunk in enumerate(chunks):
        reader.start((number, b""), chunk, None)
        if number + 1 < len(chunks):
            reader.start((number + 1, b""), chunks[number + 1], None)
        yield reader.read((number, b""), chunk, None).numpy()
