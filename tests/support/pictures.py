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
