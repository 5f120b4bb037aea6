"""Tests of fastdiff.serving.http.pictures: PNG, base64 and .npz in memory, against Pillow and NumPy."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.serving.http import pictures


def images(num=3, channels=3):
    return np.random.default_rng(0).integers(0, 256, (num, 5, 4, channels), dtype=np.uint8)


def text_of(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_gives_the_pixels_back(channels):
    image = images(1, channels)[0]
    with Image.open(io.BytesIO(base64.b64decode(pictures.as_base64(image)))) as picture:
        assert np.array_equal(np.asarray(picture).reshape(image.shape), image)


@pytest.mark.parametrize(("num", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (7, 3, 3)])
def test_grid_has_the_images_in_rows(num, rows, columns):
    given = images(num)
    sheet, *shape = pictures.grid(given)
    assert shape == [rows, columns]
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        tile = sheet[5 * row : 5 * row + 5, 4 * column : 4 * column + 4]
        assert np.array_equal(tile, given[place] if place < num else np.zeros_like(tile))


def test_archives_are_read_without_pickle():
    given = images()
    with np.load(io.BytesIO(pictures.as_npz(given, [3, 1, 2])), allow_pickle=False) as archive:
        assert np.array_equal(archive["arr_0"], given)
        assert archive["arr_1"].tolist() == [3, 1, 2]
    with np.load(io.BytesIO(pictures.as_npz(given, None)), allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
    floats = torch.randn(2, 3, 4, 4)
    with np.load(io.BytesIO(pictures.as_float_npz(floats)), allow_pickle=False) as archive:
        assert np.array_equal(archive["samples"], floats.numpy())


def test_an_image_comes_back_in_the_models_range():
    given = images(1)[0]
    found = pictures.decoded_image(pictures.as_base64(given), "image", (3, 5, 4))
    assert np.array_equal(pictures.pixels(found[None])[0], given)
    assert (float(found.min()), float(found.max())) >= (-1.0, -1.0)
    assert found.dtype == torch.float32


def test_colour_is_made_grey_and_grey_colour():
    grey = Image.fromarray(images(1, 1)[0, ..., 0])
    assert pictures.decoded_image(text_of(grey), "image", (3, 5, 4)).shape == (3, 5, 4)
    assert pictures.decoded_image(text_of(grey.convert("RGB")), "image", (1, 5, 4)).shape == (1, 5, 4)


def test_a_mask_is_known_where_it_is_white():
    mask = np.zeros((5, 4), np.uint8)
    mask[1:3] = 255
    found = pictures.decoded_mask(text_of(Image.fromarray(mask)), "mask", 5, 4)
    assert found.dtype == torch.bool
    assert np.array_equal(found.numpy(), mask[None, None] > 0)


def test_only_png_is_read():
    picture = Image.fromarray(images(1)[0])
    for kind in ("GIF", "BMP", "TIFF", "WEBP"):
        with pytest.raises(ValueError, match="image is no PNG that can be read"):
            pictures.decoded_image(text_of(picture, kind), "image", (3, 5, 4))


def test_more_than_eight_bits_are_refused():
    with pytest.raises(ValueError, match="more than 8 bits"):
        pictures.decoded_image(text_of(Image.new("I;16", (4, 5))), "image", (1, 5, 4))


def bomb(width, height):
    """A PNG that says it is large, of a few bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side):
    with pytest.raises(ValueError, match=rf"image must be 8x8 pixels, got {side}x{side}|image is no PNG"):
        pictures.decoded_image(bomb(side, side), "image", (1, 8, 8))


def test_a_text_that_inflates_is_refused():
    data = zlib.compress(bytes(20_000_000))
    body = b"zTXt" + b"a\0\0" + data
    png = base64.b64decode(bomb(8, 8))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    text = base64.b64encode(png[:33] + chunk + png[33:]).decode()
    with pytest.raises(ValueError, match="image is no PNG"):
        pictures.decoded_image(text, "image", (1, 8, 8))
    with pytest.raises(ValueError, match="have 2 channels, which no PNG has"):
        pictures.decoded_image("", "image", (2, 8, 8))
