"""How the images of a part are kept, and all of them put together.

* npz: arr_0 uint8 [n, H, W, C], and arr_1 int64 [n] with classes: what OpenAI's evaluation reads.
* png: a folder of 000000.png and on, by the ids.
* zip: EDM's: uncompressed PNGs under 00000/img00000000.png, and dataset.json with the labels.
* parquet: columns id, image (PNG bytes, as Hugging Face datasets keep them) and label; needs pyarrow.

A file depends on its images alone: the dates in archives are constant.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastdiff.files.atomic import atomic_folder, atomic_path
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name

__all__ = [
    "SUFFIXES",
    "Format",
    "Pixels",
    "check_format",
    "count_parquet",
    "gather",
    "parquet_batches",
    "read",
    "write",
]

Format = Literal["npz", "png", "zip", "parquet"]
Pixels = npt.NDArray[np.uint8]
Batch = tuple[Sequence[int], Pixels, npt.NDArray[np.int64] | None]
"""Ids, uint8 [n, H, W, C], and int64 [n] labels where there are any."""

SUFFIXES: dict[str, str] = {"npz": ".npz", "png": "", "zip": ".zip", "parquet": ".parquet"}

# The earliest that a ZIP can say.
_DATE = (1980, 1, 1, 0, 0, 0)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def check_format(name: str, channels: int) -> Format:
    """The format of this name, if it keeps images of so many channels.

    Raises:
        ValueError: an unknown name, or a number of channels that no picture has.
        RuntimeError: it is parquet, and pyarrow is missing.
    """
    if name not in get_args(Format):
        raise ValueError(f"unknown {spelt('format')} {name!r}: {nearest_name(name, get_args(Format))}")
    if name != "npz" and channels not in _MODES:
        raise ValueError(f"{name} holds pictures of 1, 3 or 4 channels, and these have {channels}: use npz")
    if name == "parquet":
        _parquet()
    return name  # type: ignore[return-value]


def write(path: Path, kind: Format, batch: Batch) -> None:
    """Write a part, whole or not at all, and synced.

    Args:
        path: With the suffix of `SUFFIXES`.
        kind: The format.
        batch: Its images.
    """
    _WRITERS[kind](path, iter([batch]), len(batch[0]))


def read(path: Path, kind: Format) -> tuple[Pixels, npt.NDArray[np.int64] | None]:
    """The images of a part, uint8 [n, H, W, C], and its labels.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return _READERS[kind](path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def gather(path: Path, parts: Iterable[Batch], num: int) -> None:
    """Put parts together into one file, by its suffix; a name without one is a folder of PNGs.

    At no time is more than a part in memory.

    Args:
        path: .npz, .zip, .parquet, or a folder that does not exist.
        parts: In the order of the ids.
        num: Images in all.

    Raises:
        ValueError: another suffix.
    """
    kinds = {suffix: kind for kind, suffix in SUFFIXES.items()}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}: the name must end in .npz, .zip or .parquet, or be that of a new folder")
    kind: Any = kinds[path.suffix.lower()]
    _WRITERS[kind](path, iter(parts), num)


def count_parquet(path: Path) -> int:
    """The rows of a Parquet file.

    Raises:
        ValueError: it is missing or damaged.
        RuntimeError: pyarrow is missing.
    """
    with _opened_parquet(path) as file:
        num: int = file.metadata.num_rows
    return num


def parquet_batches(path: Path, size: int) -> Iterator[Pixels]:
    """The images of a Parquet file, uint8 [n, H, W, C], at most `size` at a time.

    Raises:
        ValueError: it is missing or damaged, or has no such column.
        RuntimeError: pyarrow is missing.
    """
    with _opened_parquet(path) as file:
        if "image" not in file.schema_arrow.names:
            raise ValueError(f"{path} has no column 'image', but {', '.join(file.schema_arrow.names)}")
        try:
            for batch in file.iter_batches(size, columns=["image"]):
                yield np.stack([_pixels(image["bytes"]) for image in batch.column(0).to_pylist()])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _opened_parquet(path: Path) -> Any:
    arrow, parquet = _parquet()
    try:
        return parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error


def _write_npz(path: Path, parts: Iterator[Batch], num: int) -> None:
    first = next(parts)
    labels: list[npt.NDArray[np.int64]] = []
    with atomic_path(path, sync=True) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy", _DATE), "w", force_zip64=True) as file:
            _header(file, (num, *first[1].shape[1:]), np.dtype(np.uint8))
            for _, images, classes in _chained(first, parts):
                file.write(images.tobytes())
                labels += [] if classes is None else [classes]
        if labels:
            with archive.open(zipfile.ZipInfo("arr_1.npy", _DATE), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)


def _header(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def _write_png(path: Path, parts: Iterator[Batch], num: int) -> None:
    with atomic_folder(path) as partial:
        for ids, images, _ in parts:
            for number, image in zip(ids, images, strict=True):
                (partial / f"{number:06d}.png").write_bytes(_png(image))


def _write_zip(path: Path, parts: Iterator[Batch], num: int) -> None:
    said: list[list[Any]] = []
    with atomic_path(path, sync=True) as partial, zipfile.ZipFile(partial, "w") as archive:
        for ids, images, labels in parts:
            for place, (number, image) in enumerate(zip(ids, images, strict=True)):
                name = f"{number // 1000:05d}/img{number:08d}.png"
                archive.writestr(zipfile.ZipInfo(name, _DATE), _png(image))
                if labels is not None:
                    said.append([name, int(labels[place])])
        about = json.dumps({"labels": said or None})
        archive.writestr(zipfile.ZipInfo("dataset.json", _DATE), about)


def _write_parquet(path: Path, parts: Iterator[Batch], num: int) -> None:
    arrow, parquet = _parquet()
    first = next(parts)
    fields = [("id", arrow.int64()), ("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))]
    fields += [] if first[2] is None else [("label", arrow.int64())]
    # By this the `datasets` library knows a column of pictures.
    features = {"id": {"dtype": "int64", "_type": "Value"}, "image": {"_type": "Image"}}
    features |= {} if first[2] is None else {"label": {"dtype": "int64", "_type": "Value"}}
    schema = arrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    with atomic_path(path, sync=True) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for ids, images, labels in _chained(first, parts):
            pictures = [{"bytes": _png(image), "path": None} for image in images]
            columns = {"id": list(ids), "image": pictures}
            columns |= {} if labels is None else {"label": labels.tolist()}
            writer.write_table(arrow.table(columns, schema=schema))


def _read_npz(path: Path) -> tuple[Pixels, npt.NDArray[np.int64] | None]:
    with np.load(path, allow_pickle=False) as archive:
        return archive["arr_0"], archive.get("arr_1")


def _read_png(path: Path) -> tuple[Pixels, None]:
    files = sorted(path.iterdir(), key=lambda file: _by_number(file.name))
    return np.stack([_pixels(file.read_bytes()) for file in files]), None


def _read_zip(path: Path) -> tuple[Pixels, npt.NDArray[np.int64] | None]:
    with zipfile.ZipFile(path) as archive:
        names = sorted((name for name in archive.namelist() if name.endswith(".png")), key=_by_number)
        images = np.stack([_pixels(archive.read(name)) for name in names])
        said = json.loads(archive.read("dataset.json"))["labels"]
    labels = None if said is None else dict(said)
    return images, None if labels is None else np.array([labels[name] for name in names], dtype=np.int64)


def _read_parquet(path: Path) -> tuple[Pixels, npt.NDArray[np.int64] | None]:
    _, parquet = _parquet()
    table = parquet.read_table(path)
    images = np.stack([_pixels(image["bytes"]) for image in table.column("image").to_pylist()])
    labels = np.array(table.column("label").to_pylist(), np.int64) if "label" in table.column_names else None
    return images, labels


_WRITERS: dict[str, Callable[[Path, Iterator[Batch], int], None]] = {
    "npz": _write_npz,
    "png": _write_png,
    "zip": _write_zip,
    "parquet": _write_parquet,
}
_READERS: dict[str, Callable[[Path], tuple[Pixels, npt.NDArray[np.int64] | None]]] = {
    "npz": _read_npz,
    "png": _read_png,
    "zip": _read_zip,
    "parquet": _read_parquet,
}


def _chained(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest


def _by_number(name: str) -> tuple[int, str]:
    """Names of numbers in their order, also where the numbers outgrow their zeros."""
    return len(name), name


def _png(image: Pixels) -> bytes:
    channels = image.shape[2]
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if channels == 1 else image, _MODES[channels]).save(file, "PNG")
    return file.getvalue()


def _pixels(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeError(
            f'parquet needs pyarrow, which cannot be imported ({error}): pip install "fastdiff-ddpm[parquet]"'
        ) from error
    return pyarrow, pyarrow.parquet


def remove(path: Path) -> None:
    """Delete a part, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
