"""CIFAR-10 as its authors give it out: the batches for Python, which are pickles, or the binary ones."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastdiff.files.data import ImageData
from fastdiff.files.scaling import DataScaling
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown

__all__ = ["is_cifar10", "load_cifar10"]

SHAPE = (3, 32, 32)
_PIXELS = math.prod(SHAPE)
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def is_cifar10(folder: Path) -> bool:
    """Whether a folder holds CIFAR-10's batches."""
    return any((folder / f"{_TRAIN[0]}{suffix}").is_file() for suffix in ("", ".bin"))


def load_cifar10(folder: str | Path, *, split: Literal["train", "test", "all"] = "train") -> ImageData:
    """CIFAR-10 in memory, from cifar-10-batches-py or cifar-10-batches-bin.

    The pickles are read by an unpickler that builds dictionaries, lists, texts, numbers and arrays of bytes, and
    refuses whatever else a file asks for.

    Args:
        folder: The folder with the batches.
        split: "train" (data_batch_1 to 5), "test" or "all", in this order.

    Returns:
        uint8 [N, 3, 32, 32], labels 0..9 with their names.

    Raises:
        ValueError: an unknown split, or a batch that is missing, cut off, or not CIFAR-10's.

    Source: Krizhevsky (2009), "Learning multiple layers of features from tiny images"; the layout is that of
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    folder = Path(folder)
    batches = {"train": _TRAIN, "test": _TEST, "all": _TRAIN + _TEST}.get(split)
    if batches is None:
        raise ValueError(f"{spelt('split')} must be 'train', 'test' or 'all', got {shown(split)}")
    binary = not (folder / _TRAIN[0]).is_file()
    parts = [_binary_batch(folder / f"{name}.bin") if binary else _python_batch(folder / name) for name in batches]
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
    labels = np.concatenate([found for _, found in parts])
    return ImageData(torch.from_numpy(images), torch.from_numpy(labels), DataScaling(256), str(folder), _NAMES)


Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _binary_batch(path: Path) -> Batch:
    """Records of a byte for the label and 3072 for the pixels."""
    contents = _contents(path)
    if not contents or len(contents) % (_PIXELS + 1):
        raise ValueError(
            f"{path}: {len(contents)} bytes are not a whole number of records of {_PIXELS + 1}: it is cut off or no "
            "batch of CIFAR-10"
        )
    records = np.frombuffer(contents, np.uint8).reshape(-1, _PIXELS + 1)
    return records[:, 1:], _checked(path, records[:, 0].astype(np.int64))


def _python_batch(path: Path) -> Batch:
    """A dictionary with "data", uint8 [N, 3072], and "labels"."""
    contents = _contents(path)
    try:
        held = _Unpickler(io.BytesIO(contents), encoding="bytes").load()
    # What a cut-off or damaged pickle raises is anything.
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as a batch of CIFAR-10, it is cut off, damaged or another file ({error})"
        ) from error
    if not isinstance(held, dict):
        raise ValueError(f"{path}: a batch of CIFAR-10 is a dictionary, got {type(held).__name__}")
    named = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in held.items()}
    pixels, labels = named.get("data"), named.get("labels")
    pixels = pixels.value if isinstance(pixels, _Array) else None
    labels = labels if isinstance(labels, list) and all(type(one) is int for one in labels) else None
    if not isinstance(pixels, np.ndarray) or labels is None or pixels.shape != (len(labels), _PIXELS):
        raise ValueError(f"{path}: a batch of CIFAR-10 has 'data' of [N, {_PIXELS}] bytes and N 'labels', got others")
    return pixels, _checked(path, np.array(labels, np.int64))


def _checked(path: Path, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    if labels.size and (labels.min() < 0 or labels.max() > 9):
        raise ValueError(f"{path}: labels must be in 0..9, got {labels.min()}..{labels.max()}")
    return labels


class _Type:
    """What stands for NumPy's type of bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1", "uint8", b"uint8"):
            raise ValueError(f"an array of type {shown(name)}, and not of bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order and such: bytes have none."""


class _Array:
    """What stands for an array of bytes until its shape and contents are known."""

    value: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, contents = state
        if not isinstance(kind, _Type) or not isinstance(contents, bytes | str):
            raise ValueError("an array that is not of bytes")
        raw = contents if isinstance(contents, bytes) else contents.encode("latin-1")
        if math.prod(shape) != len(raw):
            raise ValueError(f"an array of shape {shown(shape)} with {len(raw)} bytes")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries, lists, texts, numbers and arrays of bytes; NumPy's own functions are never called."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for the three names that a pickled array has; a ValueError for any other."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return lambda *_: _Array()
        if module == "numpy" and name in ("ndarray", "dtype"):
            return {"ndarray": _Array, "dtype": _Type}[name]
        # Bytes in a pickle of protocol 2 that Python 3 wrote.
        if (module, name) == ("_codecs", "encode"):
            return _latin_1
        raise ValueError(f"it asks for {module}.{name}, which no batch of CIFAR-10 needs: nothing of it is run")


def _latin_1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"text in {shown(encoding)}")
    return text.encode("latin-1")
