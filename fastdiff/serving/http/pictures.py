"""Images in requests and answers: PNG, base64 and .npz in memory. Nothing is unpickled, and no path is ever opened."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastdiff.files.decoding import Decoding
from fastdiff.files.images import to_uint8
from fastdiff.files.scaling import DataScaling
from fastdiff.process.checks import shown

__all__ = [
    "as_base64",
    "as_float_npz",
    "as_npz",
    "decoded_image",
    "decoded_mask",
    "grid",
    "has_pictures",
    "pixels",
    "png",
]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# In a mask, from here on a pixel is white.
_WHITE = 128


def has_pictures(channels: int) -> bool:
    """Whether a PNG can hold images of so many channels."""
    return channels in _MODES


def pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images [n, C, H, W], about [-1, 1], as uint8 [n, H, W, C], rounded and clamped."""
    return np.ascontiguousarray(to_uint8(images.cpu()).permute(0, 2, 3, 1).numpy())


def png(image: NDArray[np.uint8]) -> bytes:
    """The file of an image [H, W, C] with 1, 3 or 4 channels."""
    channels = image.shape[2]
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if channels == 1 else image, _MODES[channels]).save(file, "PNG")
    return file.getvalue()


def as_base64(image: NDArray[np.uint8]) -> str:
    """The PNG of an image [H, W, C], in base64."""
    return base64.b64encode(png(image)).decode()


def grid(images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int, int]:
    """Images [n, H, W, C] side by side, in rows, and what is left over black.

    Returns:
        [rows H, columns W, C], rows, columns.
    """
    num, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:num] = images
    rearranged = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return np.ascontiguousarray(rearranged.reshape(rows * height, columns * width, channels)), rows, columns


def as_npz(images: NDArray[np.uint8], labels: Sequence[int] | None) -> bytes:
    """An archive as `fastdiff generate` writes it: arr_0 uint8 [n, H, W, C], and arr_1 int64 [n] with labels."""
    file = io.BytesIO()
    arrays = {"arr_0": images} if labels is None else {"arr_0": images, "arr_1": np.asarray(labels, np.int64)}
    np.savez(file, **arrays)
    return file.getvalue()


def as_float_npz(images: Tensor) -> bytes:
    """An archive of the images as the engine gives them: samples float32 [n, C, H, W]."""
    file = io.BytesIO()
    np.savez(file, samples=images.cpu().numpy())
    return file.getvalue()


def decoded_image(text: str, name: str, shape: tuple[int, int, int]) -> Tensor:
    """The image that a PNG in base64 holds.

    Args:
        text: The base64 text.
        name: What the caller calls it, for errors.
        shape: [C, H, W] that it must have; colour is made grey for one channel, and grey colour for three.

    Returns:
        float32 [C, H, W] in [-1, 1].

    Raises:
        ValueError: it cannot be read, or has another size.
    """
    if not has_pictures(shape[0]):
        raise ValueError(f"{name}: the images of this model have {shape[0]} channels, which no PNG has: leave it out")
    return DataScaling(256).to_model(torch.from_numpy(_decoded(text, name, shape).copy()))


def decoded_mask(text: str, name: str, height: int, width: int) -> Tensor:
    """The mask that a PNG in base64 holds: white where a pixel is known.

    Returns:
        Booleans [1, 1, H, W].

    Raises:
        ValueError: it cannot be read, or has another size.
    """
    return torch.from_numpy(_decoded(text, name, (1, height, width)) >= _WHITE)[None]


def _decoded(text: str, name: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    channels, height, width = shape
    try:
        file = io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} must be a PNG in base64, got {shown(text[:40])}: {error}") from error
    # The header says the size before anything is decoded: a small file can hold gigabytes of pixels.
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            found = opened.size
    except Exception as error:
        raise ValueError(f"{name} is no PNG that can be read") from error
    if found != (width, height):
        raise ValueError(f"{name} must be {width}x{height} pixels, got {found[0]}x{found[1]}")
    file.seek(0)
    try:
        array: NDArray[np.uint8] = Decoding(channels=channels).read(file)
    except ValueError as error:
        raise ValueError(f"{name} is no PNG that can be read: {error}") from error
    return array
