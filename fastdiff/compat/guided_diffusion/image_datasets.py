"""Images from a folder as endless batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastdiff.files.images import open_image

__all__ = ["ImageDataset", "center_crop_arr", "load_data", "random_crop_arr"]

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
        ValueError: the folder holds no images.
    """
    if not data_dir:
        raise ValueError("unspecified data directory")
    files = sorted(path for path in Path(data_dir).rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise ValueError(f"no images in {data_dir}: looked for {', '.join(_SUFFIXES)}")
    classes = None
    if class_cond:
        names = [path.name.split("_")[0] for path in files]
        numbers = {name: i for i, name in enumerate(sorted(set(names)))}
        classes = [numbers[name] for name in names]
    shard, num_shards = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = ImageDataset(image_size, files, classes, shard, num_shards, random_crop, random_flip)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=not deterministic, drop_last=True)
    if len(loader) == 0:
        raise ValueError(f"{data_dir} has {len(dataset)} images for this process, fewer than a batch of {batch_size}")
    return chain.from_iterable(repeat(loader))


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

    def __len__(self) -> int:
        return len(self.local_images)

    def __getitem__(self, idx: int) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.int64]]]:
        path = self.local_images[idx]
        try:
            with open_image(path) as image:
                rgb = image.convert("RGB")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        crop = random_crop_arr if self.random_crop else center_crop_arr
        pixels = crop(rgb, self.resolution)
        if self.random_flip and random.random() < 0.5:
            pixels = pixels[:, ::-1]
        values = pixels.astype(np.float32) / 127.5 - 1
        labels = {} if self.local_classes is None else {"y": np.array(self.local_classes[idx], dtype=np.int64)}
        return np.ascontiguousarray(values.transpose(2, 0, 1)), labels


def center_crop_arr(pil_image: Image.Image, image_size: int) -> Pixels:
    """The central square, resized: halved with a box filter while possible, the rest bicubic."""
    pixels = np.array(_resized(pil_image, image_size))
    top, left = ((size - image_size) // 2 for size in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def random_crop_arr(
    pil_image: Image.Image, image_size: int, min_crop_frac: float = 0.8, max_crop_frac: float = 1.0
) -> Pixels:
    """A random square of the image, of `min_crop_frac` to `max_crop_frac` of its shorter side."""
    smallest, largest = math.ceil(image_size / max_crop_frac), math.ceil(image_size / min_crop_frac)
    pixels = np.array(_resized(pil_image, random.randrange(smallest, largest + 1)))
    top, left = (random.randrange(size - image_size + 1) for size in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def _resized(image: Image.Image, shorter: int) -> Image.Image:
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = shorter / min(image.size)
    size = (round(image.size[0] * scale), round(image.size[1] * scale))
    return image.resize(size, resample=Image.Resampling.BICUBIC)
