"""Pictures on disk: read image files and NumPy files, write grids, folders of images and NumPy archives.

In memory, pictures are uint8 0..255 or float in [-1, 1], [N, C, H, W]. Image files have C 1 (grey), 3 (RGB) or 4
(RGBA), NumPy's any. Files are written under another name and moved into place, so that a reader never sees half of one.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastdiff.files.atomic import atomic_file, target_path
from fastdiff.files.decoding import Decoding, Size, height_and_width, open_image
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import whole_number

__all__ = [
    "SUFFIXES",
    "as_nchw",
    "check_sizes",
    "different_sizes",
    "list_images",
    "read_arrays",
    "read_image",
    "room_for",
    "round_to_levels",
    "to_uint8",
    "write_grid",
    "write_images",
    "write_npz",
]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""File names taken as images, in any case."""

# Of pictures, by channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

TILE_PIXELS = 64
"""Side that small images are enlarged to in a grid."""


def round_to_levels(x: Tensor, levels: int) -> Tensor:
    """The nearest of `levels` equally spaced values from -1 to 1, counted from 0.

    Args:
        x: Floats of any shape. Outside [-1, 1] they are clamped; infinities too.
        levels: 2 to 65536.

    Returns:
        Integers in 0..levels-1: uint8 up to 256 levels, int64 above.

    Raises:
        TypeError: x is not float.
        ValueError: x has a NaN.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be float in [-1, 1], got {x.dtype}")
    x = x.detach()
    num_nan = int(torch.isnan(x).sum())
    if num_nan:
        raise ValueError(f"x must be numbers in [-1, 1], got {num_nan} NaN among {x.numel()} values")
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    top = levels - 1
    return torch.round((wide + 1) * (top / 2)).clamp(0, top).to(torch.uint8 if levels <= 256 else torch.int64)


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to picture values 0..255, rounded to the nearest and clamped.

    The inverse of `DataScaling(256).to_model`. OpenAI's code truncates instead of rounding.

    Args:
        x: Floats of any shape.

    Returns:
        uint8, same shape.

    Raises:
        TypeError: x is not float.
        ValueError: x has a NaN.
    """
    return round_to_levels(x, 256)


def read_image(
    path: str | Path, *, size: Size | None = None, channels: Literal[1, 3, 4] | None = None
) -> NDArray[np.uint8]:
    """One image file: BMP, GIF, JPEG, PNG, TIFF or WebP, whatever its name says; see `Decoding` for how.

    Args:
        path: The file.
        size: Side of the result in pixels, or (height, width). The image is shrunk or enlarged until it just covers
            that, and the center is cut out, as in OpenAI's guided-diffusion. None keeps the pixels as they are.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB, 4 for RGBA. None gives 1 if the file stores grey, else 3.

    Returns:
        uint8 [C, H, W].

    Raises:
        ValueError: The file cannot be read or has more than 8 bits per channel; size or channels out of range.
    """
    decoding = Decoding(None if size is None else height_and_width(size), channels)
    try:
        return decoding.read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def list_images(root: Path) -> list[Path]:
    """Image files in a folder and its sub-folders: relative paths, sorted, at least one.

    Names that start with a dot are skipped. Links are followed, each folder once.

    Raises:
        ValueError: The folder is missing, cannot be listed, is not a folder or holds no image.
    """
    if not root.exists():
        raise ValueError(f"{root}: no such folder")
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder; a .npz or .npy file is read by load_array")

    def fail(error: OSError) -> None:
        raise ValueError(f"cannot list {error.filename}: {error.strerror}") from error

    files: list[Path] = []
    num_other = 0
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        images = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        num_other += len(names) - len(images)
        files.extend(Path(folder, name).relative_to(root) for name in images)
    if not files:
        raise ValueError(
            f"{root}: no images in it or its sub-folders; looked for {' '.join(SUFFIXES)}, saw {num_other} other files"
        )
    return sorted(files, key=Path.as_posix)


def check_sizes(root: Path, files: Sequence[Path]) -> None:
    """Compare the sizes that the files' headers state, before anything is decoded or room is made.

    A header does not always say that the picture is to be turned, so that height and width count as equal here; files
    that cannot be read are left to those who decode them.

    Raises:
        ValueError: Two sizes differ.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    for file in files:
        try:
            with open_image(root / file) as image:
                size = image.size
        except (ValueError, OSError, SyntaxError):
            continue
        if first is None:
            first = file, size
        elif sorted(size) != sorted(first[1]):
            raise different_sizes(root, first, (file, size))


def different_sizes(root: Path, first: tuple[Path, tuple[int, int]], other: tuple[Path, tuple[int, int]]) -> ValueError:
    """What is said of two files of a folder, with (width, height) each, that differ in size."""
    sizes = [f"{width}x{height}" for _, (width, height) in (first, other)]
    return ValueError(
        f"images in {root} must have one size, got {first[0]} of {sizes[0]} and {other[0]} of {sizes[1]} pixels: "
        f"{advised('size', 64)} would crop and resize them all"
    )


def room_for(root: Path, num: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Room for a folder's images, each [C, H, W], or a ValueError where there is not enough."""
    try:
        return np.empty((num, *shape), np.uint8)
    except (MemoryError, ValueError) as error:
        size = f"{shape[-1]}x{shape[-2]}"
        raise ValueError(
            f"{root}: {num} images of {size} pixels do not fit into memory: {advised('size', 64)} would help"
        ) from error


def read_arrays(path: Path, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays among `wanted` that a .npz holds; a .npy is "arr_0", memory-mapped. Nothing is ever unpickled.

    Raises:
        ValueError: The file is missing, damaged, foreign, holds pickled objects or none of the wanted keys.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        magic = file.read(6)
    if magic != b"\x93NUMPY" and magic[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise ValueError(f"{path}: not a NumPy .npy or .npz file (or an empty one)")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"arr_0": loaded}
        with loaded:
            keys = list(loaded.files)
            arrays = {key: loaded[key] for key in keys if key in wanted}
    # A damaged file surfaces as ValueError, OSError, EOFError, KeyError, BadZipFile, zlib.error, MemoryError, ...
    except Exception as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise ValueError(
                f"{path}: holds pickled Python objects, which can run code and are never loaded; save a plain array, "
                "say of type uint8"
            ) from error
        raise ValueError(f"{path}: damaged, cannot be read as a NumPy file ({error})") from error
    if not arrays:
        raise ValueError(f"{path}: none of the keys {', '.join(wanted)} is there, only {', '.join(keys) or 'nothing'}")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path}: {key} is not a NumPy array")
    return arrays


def as_nchw(array: NDArray[Any], layout: str | None, *, path: Path) -> NDArray[Any]:
    """A view of [N, H, W], [N, H, W, C] or [N, C, H, W] as [N, C, H, W].

    Where `layout` does not say it, C is the dimension of 1 or 3 entries, and where there is none, that of 2 or 4.

    Raises:
        ValueError: An empty array, another shape, or one that allows both layouts while `layout` is None. The message
            starts with `path`.
    """
    if layout not in (None, "NHWC", "NCHW"):
        raise ValueError(f"{spelt('layout')} must be 'NHWC', 'NCHW' or None, got {layout!r}")
    shape = list(array.shape)
    if array.ndim not in (3, 4):
        raise ValueError(f"{path}: images must be [N, H, W], [N, H, W, C] or [N, C, H, W], got shape {shape}")
    if array.size == 0:
        raise ValueError(f"{path}: empty, shape {shape}")
    if array.ndim == 3:
        return array[:, None]
    if layout is None:
        layouts = ("NHWC", "NCHW")
        usual, less = ([name for name in layouts if shape[name.index("C")] in counts] for counts in ((1, 3), (2, 4)))
        possible = usual or less
        if len(possible) != 1:
            ways = " or ".join(advised("layout", name) for name in layouts)
            raise ValueError(f"{path}: shape {shape} may be NHWC or NCHW: give {ways}")
        layout = possible[0]
    elif shape[layout.index("C")] > 4 and shape[3 if layout == "NCHW" else 1] in (1, 3):
        raise ValueError(f"{path}: shape {shape} has no 1 to 4 channels read as {layout}, but otherwise")
    return array.transpose(0, 3, 1, 2) if layout == "NHWC" else array


def write_grid(
    path: str | Path,
    images: Tensor,
    *,
    columns: int | None = None,
    scale: int | None = None,
    labels: Sequence[object] | Tensor | None = None,
    title: str | None = None,
) -> Path:
    """Write a PNG with all images in rows, each enlarged so that a person can see its pixels.

    Parent folders are made. Characters outside Latin-1 in texts are printed as "?".

    Args:
        path: File to write, ending in .png.
        images: [N, 1, 3 or 4, H, W], uint8 as 0..255 or float in [-1, 1] (clamped). Stored data with fewer levels, such
            as the digits, goes through `ImageData.to_model` first. RGBA is laid over white.
        columns: Images in a row, at least 1. None makes the grid about square.
        scale: Pixels a side for each pixel, at least 1. None brings the longer side to 64, or keeps larger images.
        labels: A short text below each image, N of them.
        title: A line above the grid.

    Returns:
        `path`.

    Raises:
        TypeError: images is neither uint8 nor float.
        ValueError: A bad shape, no images, a NaN, a wrong number of labels, columns or scale below 1, another suffix.
    """
    pixels = _as_pictures(images)
    num_images, height, width = pixels.shape[:3]
    if columns is None:
        columns = math.ceil(math.sqrt(num_images))
    if scale is None:
        scale = max(1, TILE_PIXELS // max(height, width))
    scale = whole_number("scale", scale, low=1)
    columns = min(whole_number("columns", columns, low=1), num_images)
    texts = None if labels is None else [_one_line(label) for label in _as_list(labels)]
    if texts is not None and len(texts) != num_images:
        raise ValueError(f"labels must be one per image, got {len(texts)} for {num_images} images")

    font = ImageFont.load_default()
    # One height for all texts, with room for letters that reach below the line.
    line_height = math.ceil(font.getbbox("Ag")[3]) + 2
    tile_width, tile_height = width * scale, height * scale
    pad = max(2, min(tile_width, tile_height) // 16)
    cell_width = max([tile_width] + [math.ceil(font.getlength(text)) for text in texts or ()])
    cell_height = tile_height + (0 if texts is None else line_height)
    heading = "" if title is None else _one_line(title)
    top = pad + (line_height if heading else 0)
    rows = math.ceil(num_images / columns)
    canvas_width = max(columns * (cell_width + pad), math.ceil(font.getlength(heading)) + pad) + pad
    canvas = Image.new("RGB", (canvas_width, rows * (cell_height + pad) + top), "white")
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.text((pad, pad // 2), heading, fill="black", font=font)
    for index in range(num_images):
        row, column = divmod(index, columns)
        left, upper = pad + column * (cell_width + pad), top + row * (cell_height + pad)
        tile = Image.fromarray(pixels[index]).resize((tile_width, tile_height), Image.Resampling.NEAREST)
        # A mask: none for RGB.
        canvas.paste(tile, (left + (cell_width - tile_width) // 2, upper), tile if tile.mode == "RGBA" else None)
        if texts is not None:
            middle = left + (cell_width - font.getlength(texts[index])) / 2
            draw.text((middle, upper + tile_height), texts[index], fill="black", font=font)
    target = target_path(path, ".png")
    with atomic_file(target) as file:
        canvas.save(file, format="PNG")
    return target


def write_images(folder: str | Path, images: Tensor, *, start: int = 0) -> list[Path]:
    """Write each image as a PNG of its own: 000000.png, 000001.png, ... The folder is made.

    Args:
        folder: Where to.
        images: [N, 1, 3 or 4, H, W] (grey, RGB, RGBA), uint8 as 0..255 or float in [-1, 1] (clamped).
        start: Number of the first, from 0.

    Returns:
        The N paths.

    Raises:
        TypeError: images is neither uint8 nor float.
        ValueError: A bad shape, no images, a NaN, or start below 0.
    """
    start = whole_number("start", start, low=0)
    pixels = _as_pictures(images)
    paths = [target_path(Path(folder, f"{start + index:06d}.png"), ".png") for index in range(len(pixels))]
    for path, picture in zip(paths, pixels, strict=True):
        with atomic_file(path) as file:
            # Grey stays grey: the file then reads back with one channel.
            Image.fromarray(picture[:, :, 0] if images.shape[1] == 1 else picture).save(file, format="PNG")
    return paths


def write_npz(path: str | Path, images: Tensor, labels: Tensor | None = None) -> Path:
    """Write an archive as OpenAI's evaluation reads it: arr_0 uint8 [N, H, W, C], and arr_1 int64 [N] if labelled.

    Args:
        path: File to write, ending in .npz. Parent folders are made.
        images: [N, C, H, W] of any number of channels, uint8 as 0..255 or float in [-1, 1] (clamped).
        labels: Integers [N].

    Returns:
        `path`.

    Raises:
        TypeError: images is neither uint8 nor float, or labels are not integers.
        ValueError: A bad shape, no images, a NaN, another suffix.
    """
    arrays = [_as_pixels(images, "C")]
    if labels is not None:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be [{len(images)}], one per image, got shape {list(labels.shape)}")
        arrays.append(labels.detach().cpu().numpy().astype(np.int64))
    target = target_path(path, ".npz")
    with atomic_file(target) as file:
        np.savez(file, *map(np.ascontiguousarray, arrays))
    return target


def _as_pictures(images: Tensor) -> NDArray[np.uint8]:
    """uint8 RGB [N, H, W, 3] or RGBA on the host; grey is repeated, without a copy."""
    if images.ndim == 4 and images.shape[1] not in _MODES:
        raise ValueError(
            f"images must be [N, 1, 3 or 4, H, W] (grey, RGB, RGBA), got shape {list(images.shape)}: a picture has no "
            f"{images.shape[1]} channels, write .npz"
        )
    pixels = _as_pixels(images, "1, 3 or 4")
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3)) if pixels.shape[3] == 1 else pixels


def _as_pixels(images: Tensor, channels: str) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C] on the host."""
    if images.ndim != 4 or images.numel() == 0:
        hint = "; for a single image pass images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images must be [N, {channels}, H, W] and not empty, got shape {list(images.shape)}{hint}")
    if images.is_floating_point():
        images = to_uint8(images)
    elif images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 or float in [-1, 1], got {images.dtype}")
    pixels: NDArray[np.uint8] = images.detach().cpu().permute(0, 2, 3, 1).numpy()
    return pixels


def _as_list(labels: Sequence[object] | Tensor) -> list[object]:
    return labels.tolist() if isinstance(labels, Tensor) else list(labels)


def _one_line(text: object) -> str:
    """Text that Pillow's default font can draw, whichever of its two it is."""
    return " ".join(str(text).split()).encode("latin-1", "replace").decode("latin-1")
