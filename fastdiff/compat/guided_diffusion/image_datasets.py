"""Images from a folder as endless batches."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastdiff.files.decoding import open_image

__all__ = [
    "ImageDataset",
    "center_crop_arr",
    "central",
    "endless_batches",
    "list_images",
    "load_data",
    "random_crop_arr",
    "resized",
]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")
Pixels = npt.NDArray[np.uint8]


def load_data(
    *,
    data_dir: str | Path,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
    random_crop: bool = False,
    random_flip: bool = True,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Endless batches of images [N, 3, H, W] in [-1, 1] and a dict of labels, "y" [N] with classes.

    Args:
        data_dir: A folder, searched with its sub-folders.
        batch_size: Images per batch of this process.
        image_size: Height and width to crop and resize to.
        class_cond: Take labels from the names of the files: what stands before the first "_".
        deterministic: Keep the order.
        random_crop: Cut out a random part, not the centre.
        random_flip: Flip half of the images.

    Raises:
        ValueError: the folder holds no images, or fewer than a batch.
    """
    files, classes = list_images(data_dir, class_cond)
    shard, num_shards = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = ImageDataset(image_size, files, classes, shard, num_shards, random_crop, random_flip)
    return endless_batches(dataset, batch_size, shuffle=not deterministic)


def list_images(data_dir: str | Path, class_cond: bool) -> tuple[list[Path], list[int] | None]:
    """The images of a folder and its sub-folders, sorted, and their classes, or None.

    Raises:
        ValueError: there are none.
    """
    if not data_dir:
        raise ValueError("unspecified data directory")
    # Links to folders are followed, as theirs are.
    found = (Path(folder, name) for folder, _, names in os.walk(data_dir, followlinks=True) for name in names)
    files = sorted(path for path in found if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"no images in {data_dir}: looked for {', '.join(_SUFFIXES)}")
    if not class_cond:
        return files, None
    names = [path.name.split("_")[0] for path in files]
    numbers = {name: i for i, name in enumerate(sorted(set(names)))}
    return files, [numbers[name] for name in names]


def endless_batches(
    dataset: ImageDataset, batch_size: int, *, shuffle: bool
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Epoch after epoch of whole batches; the order, flips and crops of a seed of PyTorch's are those of their loader.

    Raises:
        ValueError: fewer images than a batch has.
    """
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=True)
    if len(loader) == 0:
        raise ValueError(f"{len(dataset)} images for this process are fewer than a batch of {batch_size}")
    return chain.from_iterable(_epoch(dataset, loader) for _ in repeat(None))


def _epoch(dataset: ImageDataset, loader: Any) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    # Theirs reads in a worker process, whose `random` PyTorch seeds with the number that a loader draws first.
    state = torch.get_rng_state()
    dataset.generator = random.Random(int(torch.empty((), dtype=torch.int64).random_()))
    torch.set_rng_state(state)
    yield from loader


class ImageDataset(Dataset[tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.int64]]]]):
    """Images of a list of files; every `num_shards`-th of them, from `shard` on."""

    def __init__(
        self,
        resolution: int,
        image_paths: list[Path],
        classes: list[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
        random_crop: bool = False,
        random_flip: bool = True,
    ) -> None:
        self.resolution = resolution
        self.local_images = image_paths[shard::num_shards]
        self.local_classes = None if classes is None else classes[shard::num_shards]
        self.random_crop = random_crop
        self.random_flip = random_flip
        self.generator: Any = random

    def __len__(self) -> int:
        return len(self.local_images)

    def __getitem__(self, idx: int) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.int64]]]:
        path = self.local_images[idx]
        try:
            with open_image(path) as image:
                pixels = self.read(image)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if self.random_flip and self.generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        values = pixels.astype(np.float32) / 127.5 - 1
        labels = {} if self.local_classes is None else {"y": np.array(self.local_classes[idx], dtype=np.int64)}
        return np.ascontiguousarray(values.transpose(2, 0, 1)), labels

    def read(self, image: Image.Image) -> Pixels:
        """The square of an opened image, [resolution, resolution, 3]."""
        rgb = image.convert("RGB")
        if self.random_crop:
            return _random_crop(rgb, self.resolution, self.generator)
        return center_crop_arr(rgb, self.resolution)


def center_crop_arr(pil_image: Image.Image, image_size: int) -> Pixels:
    """The central square, resized: halved with a box filter while possible, the rest bicubic."""
    return central(np.array(resized(pil_image, image_size)), image_size)


def central(pixels: Pixels, image_size: int) -> Pixels:
    """The central square of [H, W, ...]."""
    top, left = ((size - image_size) // 2 for size in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def random_crop_arr(
    pil_image: Image.Image, image_size: int, min_crop_frac: float = 0.8, max_crop_frac: float = 1.0
) -> Pixels:
    """A random square of the image, of `min_crop_frac` to `max_crop_frac` of its shorter side."""
    return _random_crop(pil_image, image_size, random, min_crop_frac, max_crop_frac)


def _random_crop(image: Image.Image, image_size: int, generator: Any, low: float = 0.8, high: float = 1.0) -> Pixels:
    smallest, largest = math.ceil(image_size / high), math.ceil(image_size / low)
    pixels = np.array(resized(image, generator.randrange(smallest, largest + 1)))
    top, left = (generator.randrange(size - image_size + 1) for size in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def resized(image: Image.Image, shorter: int) -> Image.Image:
    """The image with a shorter side of that many pixels."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = shorter / min(image.size)
    size = (round(image.size[0] * scale), round(image.size[1] * scale))
    return image.resize(size, resample=Image.Resampling.BICUBIC)
