"""Random pictures and their files."""

from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(20240229)


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Random pixels as Pillow takes them: [H, W] or [H, W, 3]."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def as_chw(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


def openai_center_crop_arr(pil_image: Image.Image, image_size: int) -> np.ndarray:
    """The function as guided-diffusion has it (image_datasets.py), to compare with."""
    while min(*pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize(tuple(x // 2 for x in pil_image.size), resample=Image.BOX)
    scale = image_size / min(*pil_image.size)
    pil_image = pil_image.resize(tuple(round(x * scale) for x in pil_image.size), resample=Image.BICUBIC)
    arr = np.array(pil_image)
    crop_y = (arr.shape[0] - image_size) // 2
    crop_x = (arr.shape[1] - image_size) // 2
    return arr[crop_y : crop_y + image_size, crop_x : crop_x + image_size]
