"""From files to pixels: sizes that are not square, crops from given words, 16-bit grey."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdiff.files.decoding import Decoding, crop_offsets, height_and_width
from fastdiff.process.noise import words
from support.pictures import RNG, picture


def as_file(pixels: np.ndarray, kind: str = "PNG") -> BytesIO:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    file.seek(0)
    return file


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (5, 31), (48, 64)], ids=str)
def test_decoding_covers_a_size_that_is_not_square_and_cuts_its_center(size: tuple[int, int]) -> None:
    pixels = picture(48, 64)
    read = Decoding(size).read(as_file(pixels))
    assert read.shape == (3, *size)
    # A picture of the wanted proportions is the same as Pillow's own resizing; one that needs none stays.
    if size == (48, 64):
        assert np.array_equal(read, pixels.transpose(2, 0, 1))


def test_decoding_of_a_gradient_keeps_the_middle() -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8), (20, 60))
    read = Decoding((20, 20)).read(as_file(np.ascontiguousarray(ramp)))
    assert np.array_equal(read[0, 0], ramp[0, 20:40])


def test_decoding_cuts_where_the_words_say() -> None:
    pixels = picture(20, 30)
    decoding = Decoding((8, 8), crop="random", resize=False)
    for draws in words(3, np.arange(20), 2, 0, 0):
        top, left = (int(draws[0]) * 13) >> 32, (int(draws[1]) * 23) >> 32
        read = decoding.read(as_file(pixels), draws)
        assert np.array_equal(read, pixels[top : top + 8, left : left + 8].transpose(2, 0, 1))


def test_decoding_reaches_every_place_equally_often() -> None:
    draws = words(0, np.arange(4000), 2, 14, 5)
    places = np.array([crop_offsets((6, 4), (4, 4), pair) for pair in draws])
    assert set(places[:, 1]) == {0}
    counts = np.bincount(places[:, 0], minlength=3)
    # Five standard deviations of a count of 4000 draws with probability 1/3.
    assert np.abs(counts - 4000 / 3).max() < 5 * np.sqrt(4000 * 2 / 9)


def test_decoding_reads_16_bits_as_they_are() -> None:
    values = RNG.integers(0, 65536, (6, 7)).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        read = Decoding(deep=True).read(as_file(values, kind))
        assert read.dtype == np.uint16
        assert np.array_equal(read[0], values)
    flat = np.full((12, 12), 40000, np.uint16)
    assert (Decoding((5, 5), deep=True).read(as_file(flat)) == 40000).all()


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding(deep=True), "16-bit grey"),
        (Decoding((9, 4), resize=False), "6x8 pixels, of which 4x9"),
    ],
    ids=["8 bits", "too small"],
)
def test_decoding_says_what_does_not_fit(decoding: Decoding, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoding.read(as_file(picture(8, 6)))


@pytest.mark.parametrize("size", [0, -1, 2.0, True, [3], [3, 4, 5], [3, 0], "3"], ids=str)
def test_decoding_refuses_other_sizes(size: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        height_and_width(size)


@pytest.mark.parametrize(
    "options", [{"channels": 2}, {"crop": "left"}, {"crop": "random"}, {"deep": True, "channels": 3}], ids=str
)
def test_decoding_refuses_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"channels|crop"):
        Decoding(**options)


def test_decoding_reads_a_path_as_well(tmp_path: Path) -> None:
    Image.fromarray(picture(5, 6)).save(tmp_path / "a.png")
    assert Decoding().read(tmp_path / "a.png").shape == (3, 5, 6)
