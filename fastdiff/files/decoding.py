"""From a picture's file to pixels: which files are opened, and how they are brought to a size and a number of channels.

Whatever is random in it follows from two words that the caller gives.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import shown, whole_number

__all__ = ["Crop", "Decoding", "Size", "crop_offsets", "height_and_width", "open_image"]

Crop = Literal["center", "random"]
Size = int | Sequence[int]
"""A side in pixels, or (height, width)."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# An enlarged picture of more pixels than this is cut to what is wanted first.
_MAX_ENLARGED_PIXELS = 1 << 24
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Decoding:
    """How the pixels of a picture are made.

    - EXIF orientation is applied. Of an animation or a multi-page file, the first frame is taken.
    - Transparent pixels are laid over white, but for channels=4. An opaque alpha channel changes nothing.
    - Palette, CMYK, YCbCr and HSV become RGB, by Pillow's formulas: ICC profiles are not applied.
    - More than 8 bits per channel are refused, for how to scale them to 8 would be a guess; `deep` takes 16-bit grey.

    Attributes:
        size: (height, width) of the result in pixels; one number is a side. None keeps the pixels as they are.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB, 4 for RGBA. None gives 1 if the file stores grey, else 3.
        crop: What is cut out where the picture is larger than `size`: the "center", or a "random" place.
        resize: Shrink or enlarge the picture first until it just covers `size`, as OpenAI's guided-diffusion does:
            halved with BOX while both sides are at least twice what is wanted, then BICUBIC. False cuts out of the
            pixels as stored.
        deep: Read 16-bit grey as it is, values 0..65535, and refuse everything else.

    Raises:
        ValueError: size, channels or crop out of range, or options that do not go together.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    crop: Crop = "center"
    resize: bool = True
    deep: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", height_and_width(self.size))
        if self.channels not in (None, *_MODES):
            raise ValueError(f"{spelt('channels')} must be 1, 3, 4 or None, got {shown(self.channels)}")
        if self.crop not in ("center", "random"):
            raise ValueError(f"{spelt('crop')} must be 'center' or 'random', got {shown(self.crop)}")
        if self.crop == "random" and self.size is None:
            raise ValueError(f"a random crop needs the size of what is cut out: give {advised('size', 64)}")
        if self.deep and self.channels not in (None, 1):
            raise ValueError(f"pictures of 65536 levels are grey: {spelt('channels')} must be 1, got {self.channels}")

    def read(self, file: str | Path | BinaryIO, draws: NDArray[np.uint32] | None = None) -> NDArray[Any]:
        """The pixels of a file: BMP, GIF, JPEG, PNG, TIFF or WebP, whatever its name says.

        Args:
            file: A path, or an open file.
            draws: [2], words that say where a random crop lies; see `crop_offsets`.

        Returns:
            uint8 [C, H, W], or uint16 [1, H, W] with `deep`.

        Raises:
            ValueError: it cannot be read, or does not fit the options. The message does not name the file.
        """
        try:
            with open_image(file, deep=self.deep) as opened:
                grey = self.channels == 1 or (self.channels is None and opened.mode in ("1", "L", "LA"))
                picture = ImageOps.exif_transpose(opened)
            if self.deep:
                # Pillow resizes no 16 bits; "I" has 32.
                picture = picture.convert("I")
            else:
                if self.channels != 4 and (
                    "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info
                ):
                    picture = picture.convert("RGBA")
                    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
                picture = picture.convert("L" if grey else _MODES[self.channels or 3])
            if self.size is not None:
                picture = self._cut(picture, self.size, draws)
        # Pillow's decoders raise a dozen types on damaged files: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            if isinstance(error, UnidentifiedImageError):
                raise ValueError("not an image") from error
            raise ValueError(getattr(error, "strerror", None) or str(error) or repr(error)) from error
        pixels = np.array(picture)
        if self.deep:
            pixels = pixels.clip(0, 65535).astype(np.uint16)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _cut(self, picture: Image.Image, size: tuple[int, int], draws: NDArray[np.uint32] | None) -> Image.Image:
        """What is wanted of a picture. Source: guided_diffusion/image_datasets.py, center_crop_arr."""
        height, width = size
        draws = draws if self.crop == "random" else None
        if not self.resize:
            if picture.width < width or picture.height < height:
                raise ValueError(
                    f"{picture.width}x{picture.height} pixels, of which {width}x{height} cannot be cut out: leave out "
                    f"{advised('resize', False)}, or remove it"
                )
            top, left = crop_offsets((picture.height, picture.width), size, draws)
            return picture.crop((left, top, left + width, top + height))
        while picture.width >= 2 * width and picture.height >= 2 * height:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        scale = max(width / picture.width, height / picture.height)
        wide, high = round(picture.width * scale), round(picture.height * scale)
        top, left = crop_offsets((high, wide), size, draws)
        if wide * high > _MAX_ENLARGED_PIXELS:
            across, down = picture.width / wide, picture.height / high
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
        picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        return picture.crop((left, top, left + width, top + height))


def crop_offsets(
    stored: tuple[int, int], size: tuple[int, int], draws: NDArray[np.uint32] | None = None
) -> tuple[int, int]:
    """Top and left of what is cut out of a picture.

    Args:
        stored: (height, width) of the picture.
        size: (height, width) of what is cut out, no larger.
        draws: Two words r, for the two offsets r (n + 1) div 2^32, where n pixels are left over; None for the center.
    """
    over = [stored[0] - size[0], stored[1] - size[1]]
    if draws is None:
        return over[0] // 2, over[1] // 2
    return (int(draws[0]) * (over[0] + 1)) >> 32, (int(draws[1]) * (over[1] + 1)) >> 32


def height_and_width(size: Any) -> tuple[int, int]:
    """A size given as a side, or as height and width.

    Raises:
        ValueError: it is neither one whole number of at least 1 nor two.
    """
    if isinstance(size, list | tuple):
        if len(size) != 2:
            raise ValueError(f"{spelt('size')} must be a side or [height, width], got {shown(size)}")
        height, width = size
    else:
        height = width = size
    name = spelt("size")
    return whole_number(name, height, low=1, strict=True), whole_number(name, width, low=1, strict=True)


def open_image(file: str | Path | BinaryIO, *, deep: bool = False) -> Image.Image:
    """An image file, opened and not yet decoded; to be used in a `with`.

    Pillow knows formats that start other programs, and goes by a file's contents: only a few are tried.

    Args:
        file: A path, or an open file.
        deep: Take 16-bit grey and nothing else, instead of 8 bits per channel at most.

    Raises:
        ValueError: It is not a file (a pipe would be waited for), or has another number of bits per channel.
        UnidentifiedImageError: It is of another format.
        OSError: It cannot be read.
    """
    if isinstance(file, str | Path) and stat.S_IFMT(os.stat(file).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        raise ValueError("not a file: a pipe or a device is not read")
    picture = Image.open(file, formats=_FORMATS)
    mode = picture.mode
    if deep and not (mode.startswith("I;16") or mode == "I"):
        picture.close()
        raise ValueError(f"not 16-bit grey but mode {mode}: {advised('levels', 65536)} is for 16-bit grey alone")
    if not deep and _is_deep(picture):
        picture.close()
        raise ValueError(
            f"more than 8 bits per channel (mode {mode}): convert it to 8 bits, or store float32 in [-1, 1] as .npy"
        )
    return picture


def _is_deep(file: Image.Image) -> bool:
    """Whether an image that is open but not yet decoded has more than 8 bits per channel."""
    # Pillow cuts 16-bit colour to 8 bits without a word; the decoder's raw mode, such as "RGB;16B", is the only trace.
    # "BGR;16" is 16 bits for all three channels.
    raw_modes = [str(tile[3]).replace("BGR;16", "") for tile in getattr(file, "tile", [])]
    return file.mode[0] in "IF" or any(";16" in raw_mode for raw_mode in raw_modes)
