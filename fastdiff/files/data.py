"""Images to train on: the bundled digits, a folder of pictures, or a NumPy file; and the order they are visited in.

Everything is held in memory, as stored (uint8 or float32, NCHW), and goes to the model's [-1, 1] one batch at a time.
The order of the data and the flips are pure functions of (seed, step): a resumed run sees what it would have seen.
"""

import functools
import hashlib
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.files.decoding import Decoding, Size, height_and_width
from fastdiff.files.images import (
    as_nchw,
    check_sizes,
    different_sizes,
    list_images,
    read_arrays,
    read_image,
    room_for,
    to_uint8,
)
from fastdiff.files.scaling import DataScaling, check_type
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import whole_number

__all__ = [
    "DataScaling",
    "ImageData",
    "batch_indices",
    "digits",
    "flip_mask",
    "load",
    "load_array",
    "load_folder",
    "to_uint8",
]

MAX_LISTED = 5
"""Unreadable images named in one error."""

# The second half of the Philox key: permutations count up from 2^63, flips from 2^62, so no two streams meet.
_EPOCH_KEY = 2**63
_FLIP_KEY = 2**62


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A set of images of one size, in memory.

    The types and shapes are checked here; that float values are finite and in [-1, 1], by the loaders.

    Attributes:
        images: [N, C, H, W], uint8 or uint16 in 0..levels-1, or float32 in [-1, 1] for continuous data.
        labels: int64 [N], classes counted from 0; None without classes.
        scaling: How stored values map to [-1, 1].
        source: Where the images came from, for people and for a checkpoint's metadata.
        label_names: Name of each class (sub-folder, digit), index = label; None when there are none.

    Raises:
        ValueError: Wrong shapes, or levels that do not fit the type.
        TypeError: Wrong types.
    """

    images: Tensor
    labels: Tensor | None
    scaling: DataScaling
    source: str
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ValueError(f"images must be [N, C, H, W], got shape {list(self.images.shape)}")
        check_type(self.images.dtype, self.scaling.levels)
        if self.labels is not None:
            if self.labels.dtype != torch.int64:
                raise TypeError(f"labels must be int64, got {self.labels.dtype}")
            if self.labels.shape != self.images.shape[:1]:
                raise ValueError(f"labels must be [{len(self)}], one per image, got shape {list(self.labels.shape)}")

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        kind = "continuous" if self.scaling.levels is None else f"{self.scaling.levels} levels"
        labels = "no labels" if self.labels is None else "labels"
        return f"ImageData({len(self)} images of {shape}, {kind}, {labels}, source={self.source!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Self:
        """The images at `indices`, in that order, with their labels.

        Args:
            indices: Integers in 0..N-1, one dimension; repeats allowed.

        Raises:
            TypeError: indices are not integers (a boolean mask is not a list of indices).
            ValueError: indices are not one-dimensional.
            IndexError: An index outside 0..N-1.
        """
        index = torch.as_tensor(indices, device=self.images.device)
        if index.numel() == 0:
            index = index.to(torch.int64)
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {index.dtype}")
        if index.ndim != 1:
            raise ValueError(f"indices must have one dimension, got shape {list(index.shape)}")
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise IndexError(f"indices must be in 0..{len(self) - 1}, got {int(index.min())}..{int(index.max())}")
        index = index.to(torch.int64)
        labels = None if self.labels is None else self.labels[index]
        return type(self)(self.images[index], labels, self.scaling, self.source, self.label_names)

    @property
    def num_draws(self) -> int:
        """None: nothing is random in reading from memory."""
        return 0

    @property
    def workers(self) -> int:
        """None: reading is a copy in memory."""
        return 0

    def read(self, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None = None) -> Tensor:
        """The images at `indices`, int64 [n] in 0..N-1, as stored: [n, C, H, W].

        uint16 becomes int32, since PyTorch has few functions for it.
        """
        images = self.images[torch.from_numpy(indices).to(self.images.device)]
        return images.to(torch.int32) if images.dtype == torch.uint16 else images

    def describe(self, *, with_labels: bool) -> dict[str, Any]:
        """What a checkpoint says of the data, with a SHA-256 of all values, and of the labels where asked."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels if with_labels else None):
            if tensor is not None:
                array: Any = tensor.cpu().contiguous().numpy()
                digest.update(array)
        about = {"source": self.source, "num_images": len(self), "shape": list(self.shape)}
        about["sha256"] = digest.hexdigest()
        return about | ({"classes": list(self.label_names)} if with_labels and self.label_names else {})

    def check(self) -> None:
        """Raise ValueError where a value does not fit the scaling."""
        levels = self.scaling.levels
        if levels is not None and len(self):
            top = int(self.images.cpu().numpy().max())
            if top >= levels:
                raise ValueError(f"images with {levels} levels must be in 0..{levels - 1}, got {top}")

    def to_model(self, images: Tensor) -> Tensor:
        """Images as stored here to the model's float32 in [-1, 1]; see `DataScaling.to_model`."""
        return self.scaling.to_model(images)


def digits(split: Literal["train", "test", "all"] = "train") -> ImageData:
    """scikit-learn's bundled handwritten digits: 1,797 images of 8x8, values 0..16. Needs no download.

    A fixed fifth is held out: sort the images by class, keeping their order in the data within a class; every fifth
    of that list, starting with the first, is a test image (360, 35 to 37 per class), the others train (1,437). No
    random numbers are involved. Both parts keep the order of the data.

    The data are the test set of UCI optdigits: 13 writers, as it seems one after the other, with no mark of who wrote
    what. A rule of every fifth therefore puts the same writers in both parts: a test score says how well new images
    of *known* writers are modelled, and is likely to flatter the model as to new ones.

    Args:
        split: "train", "test" or "all".

    Returns:
        uint8 [N, 1, 8, 8] in 0..16 (17 levels), labels 0..9.

    Raises:
        ValueError: An unknown split.
        RuntimeError: scikit-learn is not installed.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"{spelt('split')} must be 'train', 'test' or 'all', got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(
            f'the digits come with scikit-learn, which cannot be imported ({error}): pip install "fastdiff-ddpm[demo]"'
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)[:, None])
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    data = ImageData(images, labels, DataScaling(17), f"digits/{split}", tuple("0123456789"))
    if split == "all":
        return data
    held_out = torch.zeros(len(data), dtype=torch.bool)
    held_out[torch.argsort(labels, stable=True)[::5]] = True
    return data.take(torch.nonzero(held_out if split == "test" else ~held_out).flatten())


def load_folder(path: str | Path, *, size: Size | None = None, channels: Literal[1, 3, 4] | None = None) -> ImageData:
    """Every image in a folder and its sub-folders, sorted by path.

    Names that start with a dot are skipped. Links are followed, each folder once. `images.read_image` says what
    becomes of palettes, transparency, EXIF orientation, animations and 16-bit files.

    Labels are the indices of the first-level sub-folders, sorted by name, counting those that hold images. They are
    None unless every image lies in a sub-folder.

    Args:
        path: The folder.
        size: Side of the result in pixels, or (height, width): each image is resized until it covers that, and its
            center is cut out. None keeps the pixels as they are and asks for images of one size.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB, 4 for RGBA. None gives 1 if every image is stored as grey,
            else 3.

    Returns:
        uint8 [N, C, H, W], 256 levels.

    Raises:
        ValueError: The folder is missing, empty or not a folder; an image cannot be read (up to 5 are named); sizes
            differ and `size` is None; size or channels out of range.
    """
    root = Path(path)
    Decoding(None if size is None else height_and_width(size), channels)
    files = list_images(root)
    if size is None:
        check_sizes(root, files)
    images: NDArray[np.uint8] | None = None
    first = files[0]
    unreadable: list[str] = []
    for index, file in enumerate(files):
        try:
            pixels = read_image(root / file, size=size, channels=channels)
        except ValueError as error:
            unreadable.append(str(error))
            if len(unreadable) == MAX_LISTED:
                break
            continue
        if images is None:
            images, first = room_for(root, len(files), pixels.shape), file
        if pixels.shape[1:] != images.shape[2:]:
            stored = [(array.shape[-1], array.shape[-2]) for array in (images, pixels)]
            raise different_sizes(root, (first, stored[0]), (file, stored[1]))
        if pixels.shape[0] > images.shape[1]:
            images = np.repeat(images, 3, axis=1)
        images[index] = pixels
    if unreadable or images is None:
        more = ", and maybe more" if len(unreadable) == MAX_LISTED else ""
        listed = "\n  ".join(unreadable)
        raise ValueError(f"{len(unreadable)} images in {root} cannot be used{more}; repair or remove:\n  {listed}")
    names: tuple[str, ...] | None = None
    labels = None
    if all(len(file.parts) > 1 for file in files):
        names = tuple(sorted({file.parts[0] for file in files}))
        number = {name: index for index, name in enumerate(names)}
        labels = torch.tensor([number[file.parts[0]] for file in files])
    return ImageData(torch.from_numpy(images), labels, DataScaling(256), str(path), names)


def load_array(
    path: str | Path,
    *,
    layout: Literal["NHWC", "NCHW"] | None = None,
    labels: str | Path | None = None,
    levels: int | None = None,
) -> ImageData:
    """Images from a .npz or .npy file. Pickled objects are never loaded.

    Args:
        path: A .npy file, or a .npz with the images under "arr_0" or "images" and, if there are labels, those under
            "arr_1" or "labels". Images are [N, H, W] (grey), [N, H, W, C] or [N, C, H, W] with any C: uint8 in
            0..255, uint16 in 0..65535, or float in [-1, 1].
        layout: Which of the two four-dimensional layouts it is. Needed where the shape allows both, and where neither
            reading has 1 to 4 channels.
        labels: A .npy file of labels, used instead of those in `path`.
        levels: Number of values of integers, where they are fewer than their type has: 17 for 0..16.

    Returns:
        uint8 (256 levels), uint16 (65536 levels) or float32 (continuous), [N, C, H, W].

    Raises:
        ValueError: The file is missing, damaged, foreign or holds pickled objects; a key is missing; the shape, the
            type or the values are not the above; the labels are not N integers from 0 up.

    Warns:
        UserWarning: Float data without a negative value, which may be [0, 1] data that nobody mapped to [-1, 1].
    """
    path = Path(path)
    arrays = read_arrays(path, ("arr_0", "images", "arr_1", "labels"))
    array = arrays.get("arr_0", arrays.get("images"))
    if array is None:
        raise ValueError(f"{path}: images must be under the key 'arr_0' or 'images', got only {', '.join(arrays)}")
    scaling = scaling_of(path, array.dtype, levels)
    pixels = as_nchw(array, layout, path=path)
    if array.dtype.kind == "f":
        _check_unit_range(path, array)
    elif levels is not None and int(array.max()) >= levels:
        raise ValueError(f"{path}: images of {levels} levels must be in 0..{levels - 1}, got {int(array.max())}")
    kept = np.float32 if array.dtype.kind == "f" else array.dtype
    # A copy in any case: a .npy is read through a memory map, which must not outlive this call.
    images = torch.from_numpy(np.array(pixels, dtype=kept, order="C", copy=True))
    found = labels_of(path, arrays, labels, len(images))
    return ImageData(images, found, scaling, str(path))


def scaling_of(path: Path, dtype: np.dtype[Any], levels: int | None) -> DataScaling:
    """How an array's values are scaled: `levels` of them, or as many as the type has.

    Raises:
        ValueError: the type is none of the three, or has fewer values.
    """
    if dtype.kind == "f" and levels is None:
        return DataScaling(None)
    if dtype not in (np.uint8, np.uint16):
        what = "uint8 in 0..255, uint16 in 0..65535 or float in [-1, 1]" if levels is None else "uint8 or uint16"
        raise ValueError(f"{path}: images must be {what}, got {dtype}")
    most = 256 if dtype == np.uint8 else 65536
    return DataScaling(most if levels is None else whole_number(spelt("levels"), levels, low=2, high=most))


def labels_of(
    path: Path, arrays: Mapping[str, NDArray[Any]], labels: str | Path | None, num_images: int
) -> Tensor | None:
    """The labels that stand beside an array of images, or those in a file of their own: int64 [num_images]."""
    if labels is not None:
        other = Path(labels)
        found = read_arrays(other, ("arr_0",)).get("arr_0")
        return None if found is None else as_labels(other, found, num_images)
    found = arrays.get("arr_1", arrays.get("labels"))
    return None if found is None else as_labels(path, found, num_images)


def _check_unit_range(path: Path, array: NDArray[Any]) -> None:
    """Raises unless all values are finite and in [-1, 1]; `array` is as stored, so that positions mean something."""
    finite = np.isfinite(array)
    num_bad = array.size - int(np.count_nonzero(finite))
    if num_bad:
        where = [int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape)]
        raise ValueError(f"{path}: {num_bad} of {array.size} values are NaN or infinite, the first at index {where}")
    low, high = float(array.min()), float(array.max())
    if low < -1 or high > 1:
        raise ValueError(
            f"{path}: float images must be in [-1, 1], got {low:g}..{high:g}: store 0..255 as uint8, or map and clip "
            "the values to [-1, 1]"
        )
    if low >= 0:
        warnings.warn(
            f"{path}: float images without a negative value ({low:g}..{high:g}); if they are in [0, 1], store 2*x - 1",
            stacklevel=3,
        )


def as_labels(path: Path | str, array: NDArray[Any], num_images: int) -> Tensor:
    """Labels as int64 [num_images]."""
    if array.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels must be integers, got {array.dtype}")
    if array.shape != (num_images,):
        raise ValueError(f"{path}: labels must be [{num_images}], one per image, got shape {list(array.shape)}")
    labels = torch.from_numpy(array.astype(np.int64))
    if int(labels.min()) < 0:
        raise ValueError(f"{path}: labels must count from 0, got {int(labels.min())}")
    return labels


def load(
    source: str | Path,
    *,
    split: Literal["train", "test", "all"] | None = None,
    size: Size | None = None,
    channels: Literal[1, 3, 4] | None = None,
    layout: Literal["NHWC", "NCHW"] | None = None,
    labels: str | Path | None = None,
) -> ImageData:
    """Images from any source this module reads.

    Args:
        source: "digits", a folder of images (a folder of that name: "./digits"), or a .npz or .npy file.
        split: Digits only, see `digits`; None is "train".
        size: Folders only, see `load_folder`.
        channels: Folders only.
        layout: Arrays only, see `load_array`.
        labels: Arrays only.

    Raises:
        ValueError: None of these, an option that does not belong to the source, or the source's own errors.
        RuntimeError: The digits without scikit-learn.
    """
    options = {"split": split, "size": size, "channels": channels, "layout": layout, "labels": labels}

    def accept(kind: str, *names: str) -> None:
        for name, value in options.items():
            if value is not None and name not in names:
                raise ValueError(
                    f"{kind} takes no {spelt(name)} (got {value!r}); it takes {', '.join(map(advised, names))}"
                )

    if source == "digits":
        accept("the source 'digits'", "split")
        return digits(split or "train")
    path = Path(source)
    if path.is_dir() and source != "":
        accept("a folder", "size", "channels")
        return load_folder(path, size=size, channels=channels)
    if path.is_file() and path.suffix.lower() in (".npz", ".npy"):
        accept("a NumPy file", "layout", "labels")
        return load_array(path, layout=layout, labels=labels)
    what = "is not one of them" if path.exists() else "does not exist"
    raise ValueError(
        f"{spelt('data', 'a source')} is 'digits', a folder of images, or a .npz or .npy file; {str(source)!r} {what}"
    )


@functools.lru_cache(maxsize=4)
def _permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    key = np.array([seed, _EPOCH_KEY + epoch], dtype=np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(num_images)
    order.setflags(write=False)
    return order


def batch_indices(num_images: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Which images make up the batch of a step: a pure function of its arguments.

    Each epoch visits every image once, in an order of its own. Batches run on across the end of an epoch, so every
    batch is full; with batch_size = B, step s takes the places s B to s B + B - 1 of all epochs laid end to end.

    The order of an epoch is NumPy's `Generator.permutation` on Philox4x64-10 with key (seed, 2^63 + epoch).

    Args:
        num_images: Images in the set, at least 1.
        batch_size: At least 1; may exceed num_images.
        step: From 0. Steps may be asked for in any order.
        seed: Any integer, taken modulo 2^64.

    Returns:
        int64 [batch_size], values in 0..num_images-1.

    Raises:
        ValueError: num_images or batch_size below 1, or step below 0.
    """
    num_images = whole_number("num_images", num_images, low=1)
    batch_size = whole_number("batch_size", batch_size, low=1)
    step, seed = whole_number("step", step, low=0), operator.index(seed) % 2**64
    parts = []
    place, stop = step * batch_size, (step + 1) * batch_size
    while place < stop:
        epoch, offset = divmod(place, num_images)
        part = _permutation(num_images, seed, epoch)[offset : offset + stop - place]
        parts.append(part)
        place += len(part)
    return np.concatenate(parts)


def flip_mask(batch_size: int, step: int, seed: int) -> NDArray[np.bool_]:
    """Which images of a step's batch to mirror left to right, each with probability 1/2.

    A pure function of (seed, step, position): the mask of a smaller batch is the beginning of that of a larger one.
    Bit 63 of the outputs of Philox4x64-10 with key (seed, 2^62 + step).

    Args:
        batch_size: At least 0.
        step: From 0, below 2^62.
        seed: Any integer, taken modulo 2^64.

    Returns:
        bool [batch_size].

    Raises:
        ValueError: batch_size or step out of range.
    """
    batch_size = whole_number("batch_size", batch_size, low=0)
    step = whole_number("step", step, low=0, high=_FLIP_KEY - 1)
    key = np.array([operator.index(seed) % 2**64, _FLIP_KEY + step], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(batch_size) >= np.uint64(2**63)
