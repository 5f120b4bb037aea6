"""fastdiff.files.images: what becomes of a picture file."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdiff.files.data import load_folder
from fastdiff.files.images import (
    read_image,
)
from support.pictures import as_chw, openai_center_crop_arr

RNG = np.random.default_rng(20240301)
EXIF_ORIENTATION = 0x0112


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(height: int, width: int, bit_depth: int, color_type: int, rows: list[bytes]) -> bytes:
    """A PNG from raw scanlines, for what Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.webp"])
def test_images_lossless_formats_keep_every_pixel(tmp_path: Path, name: str) -> None:
    pixels = picture(7, 10)
    Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    read = read_image(tmp_path / name)
    assert read.dtype == np.uint8
    assert np.array_equal(read, as_chw(pixels))


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_images_lossy_formats_come_close(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(20, 230, 32).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (32, 1))] * 3, axis=-1)
    Image.fromarray(pixels).save(tmp_path / name, quality=95)
    assert np.abs(read_image(tmp_path / name).astype(int) - as_chw(pixels)).max() <= 6


def test_images_result_can_be_written_to(tmp_path: Path) -> None:
    for mode in ("L", "RGB"):
        Image.new(mode, (4, 4)).save(tmp_path / "a.png")
        read_image(tmp_path / "a.png")[:] = 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = picture(4, 6)
    # How a camera held this way stores the upright picture; the EXIF standard's table, with NumPy's operations.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), as_chw(upright))


def test_images_exif_orientation_of_a_jpeg_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 30, 20)


def test_images_palette_becomes_rgb(tmp_path: Path) -> None:
    colours = picture(1, 5)[0]
    indices = RNG.integers(0, 5, (6, 9), dtype=np.uint8)
    image = Image.frombytes("P", (9, 6), indices.tobytes())
    image.putpalette(colours.tobytes())
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), as_chw(colours[indices]))


def test_images_palette_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([10, 20, 30, 40, 50, 60])
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=1)
        assert read_image(tmp_path / name)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_images_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    pixels = np.concatenate([picture(64, 64), np.full((64, 64, 1), 255, np.uint8)], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), as_chw(pixels[..., :3]))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_images_alpha_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    alpha = np.arange(256, dtype=np.uint8)[None]
    value = RNG.integers(0, 256, (1, 256), dtype=np.uint8)
    Image.fromarray(np.stack([value] * (len(mode) - 1) + [alpha], axis=-1)).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    weight = alpha / 255.0
    expected = value * weight + 255 * (1 - weight)
    assert read.shape == (len(mode) - 1, 1, 256)
    assert np.abs(read - expected).max() <= 1


def test_images_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2, (5, 9)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), bits[None] * np.uint8(255))


def test_images_cmyk_becomes_rgb(tmp_path: Path) -> None:
    pixels = picture(4, 4)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif"), as_chw(pixels))
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg")[:, 0, 0].astype(int) - [0, 255, 255]).max() <= 3


def test_images_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_image(tmp_path / name)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_channels_can_be_chosen(tmp_path: Path, channels: int) -> None:
    pixels = picture(4, 5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
    read = read_image(tmp_path / "a.png", channels=channels)  # type: ignore[arg-type]
    assert read.shape == (channels, 4, 5)
    if channels == 1:
        assert np.abs(read[0] - luma).max() <= 1


def test_images_16_bit_grey_is_refused(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (4, 5), dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: more than 8 bits per channel"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("color_type", [0, 2, 4, 6], ids=["grey", "rgb", "grey-alpha", "rgba"])
def test_images_16_bit_png_is_refused(tmp_path: Path, color_type: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    (tmp_path / "a.png").write_bytes(png(2, 3, 16, color_type, [os.urandom(2 * 3 * channels)] * 2))
    Image.open(tmp_path / "a.png").load()
    with pytest.raises(ValueError, match="more than 8 bits per channel"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(2, 3, 8, color_type, [os.urandom(3 * channels)] * 2))
    assert read_image(tmp_path / "b.png").shape[1:] == (2, 3)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_32_bit_is_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="more than 8 bits per channel"):
        read_image(tmp_path / "a.tif")


def test_images_16_bits_for_all_channels_are_read(tmp_path: Path) -> None:
    # BMP 5-6-5: 16 bits per pixel, fewer than 8 per channel.
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    pixels = struct.pack("<HH", 0xF800, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    offset = 14 + len(header) + len(masks)
    (tmp_path / "a.bmp").write_bytes(
        struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset) + header + masks + pixels
    )
    assert read_image(tmp_path / "a.bmp")[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(100, 150, 32), (150, 101, 32), (64, 64, 64), (20, 31, 64), (33, 33, 16), (7, 200, 5), (3, 3, 1)],
    ids=str,
)
def test_images_resize_as_openai_does(tmp_path: Path, height: int, width: int, size: int) -> None:
    image = Image.fromarray(picture(height, width))
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", size=size), as_chw(openai_center_crop_arr(image, size)))


def test_images_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"a\.png: not an image"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="directory"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_images_damage_ends_in_pixels_or_a_value_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    # A damaged header may ask for gigabytes.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture(12, 12)).save(path)
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for position in RNG.integers(0, len(content), 3):
            damaged[position] = RNG.integers(0, 256)
        path.write_bytes(damaged[: RNG.integers(1, len(content) + 1)] if RNG.random() < 0.5 else damaged)
        try:
            outcome = str(read_image(path, size=4).shape[1:])
        except ValueError as error:
            outcome = str(error)
        assert outcome == "(4, 4)" or f"a.{suffix}: " in outcome


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "PCX", "ICO"])
def test_images_of_other_formats_are_not_opened_whatever_their_name(tmp_path: Path, name: str, kind: str) -> None:
    Image.fromarray(picture(16, 16)).save(tmp_path / name, format=kind)
    with pytest.raises(ValueError, match="not an image"):
        read_image(tmp_path / name)
    Image.fromarray(picture(16, 16)).save(tmp_path / name, format="PNG")
    assert read_image(tmp_path / name).shape == (3, 16, 16)


def test_images_pipes_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: not a file: a pipe"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a pipe"):
        load_folder(tmp_path)


def test_images_sizes_are_compared_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        Image.fromarray(picture(8, 8 + index)).save(tmp_path / f"{index}.png")
    monkeypatch.setattr("fastdiff.files.data.read_image", lambda *args, **options: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"0\.png of 8x8 and 1\.png of 9x8 pixels"):
        load_folder(tmp_path)
