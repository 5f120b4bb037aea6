"""fastdiff.images: what becomes of a picture file, and the three writers."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from fastdiff.files import images as images_module
from fastdiff.files.data import digits, load_array, load_folder
from fastdiff.files.images import (
    read_image,
    to_uint8,
    write_grid,
    write_images,
    write_npz,
)

RNG = np.random.default_rng(20240301)
EXIF_ORIENTATION = 0x0112


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_chw(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


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


def test_images_folder_reads_back(tmp_path: Path) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (3, 3, 5, 6), dtype=np.uint8))
    paths = write_images(tmp_path / "new/folder", images, start=41)
    assert [path.name for path in paths] == ["000041.png", "000042.png", "000043.png"]
    assert sorted(os.listdir(tmp_path / "new/folder")) == [path.name for path in paths]
    assert torch.equal(load_folder(tmp_path / "new/folder").images, images)


def test_images_folder_keeps_grey_and_maps_floats(tmp_path: Path) -> None:
    x = torch.rand(2, 1, 5, 6) * 2.4 - 1.2
    write_images(tmp_path, x)
    assert torch.equal(load_folder(tmp_path).images, to_uint8(x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_npz_is_openais_and_reads_back(tmp_path: Path, channels: int, channels_last: bool) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (4, channels, 5, 6), dtype=np.uint8))
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    path = write_npz(tmp_path / "deep/er/a.npz", images, torch.tensor([2, 0, 1, 1], dtype=torch.int32))
    with np.load(path) as archive:
        assert archive.files == ["arr_0", "arr_1"]
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_0"].flags.c_contiguous
        assert np.array_equal(archive["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert archive["arr_1"].dtype == np.int64
    data = load_array(path)
    assert torch.equal(data.images, images)
    assert data.labels is not None
    assert data.labels.tolist() == [2, 0, 1, 1]


def test_images_npz_is_in_c_order_whatever_the_strides(tmp_path: Path) -> None:
    # [1, H, 1, 3] seen from NCHW memory is Fortran order, which NumPy would keep and OpenAI's reader would not stream.
    with np.load(write_npz(tmp_path / "a.npz", torch.rand(1, 3, 5, 1))) as archive:
        assert archive["arr_0"].flags.c_contiguous


def test_images_npz_without_labels_and_of_floats(tmp_path: Path) -> None:
    x = torch.rand(4, 3, 5, 6) * 2 - 1
    with np.load(write_npz(tmp_path / "a.npz", x)) as archive:
        assert archive.files == ["arr_0"]
        assert np.array_equal(archive["arr_0"], to_uint8(x).permute(0, 2, 3, 1).numpy())


def test_images_npz_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    one, two = write_npz(tmp_path / "1.npz", images), write_npz(tmp_path / "2.npz", images)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("labels", "error"),
    [(torch.zeros(3, dtype=torch.int64), ValueError), (torch.zeros(2), TypeError), (torch.ones(2) > 0, TypeError)],
    ids=["three", "float", "bool"],
)
def test_images_npz_refuses_bad_labels(tmp_path: Path, labels: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="labels"):
        write_npz(tmp_path / "a.npz", torch.zeros(2, 3, 4, 4), labels)
    assert os.listdir(tmp_path) == []


def read_grid(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_images_grid_places_enlarged_pixels(tmp_path: Path) -> None:
    images = torch.from_numpy(RNG.integers(0, 250, (5, 3, 4, 6), dtype=np.uint8))
    grid = read_grid(write_grid(tmp_path / "new/a.png", images, columns=3, scale=7))
    pad, tile_height, tile_width = 2, 28, 42
    assert grid.shape == (pad + 2 * (tile_height + pad), pad + 3 * (tile_width + pad), 3)
    left = np.ones(grid.shape[:2], dtype=bool)
    for index in range(5):
        top, start = pad + index // 3 * (tile_height + pad), pad + index % 3 * (tile_width + pad)
        tile = grid[top : top + tile_height, start : start + tile_width]
        enlarged = images[index].permute(1, 2, 0).numpy().repeat(7, axis=0).repeat(7, axis=1)
        assert np.array_equal(tile, enlarged)
        left[top : top + tile_height, start : start + tile_width] = False
    assert (grid[left] == 255).all()


@pytest.mark.parametrize(
    ("num_images", "side", "shape"),
    [(4, 8, (2 * 64, 2 * 64)), (1, 8, (64, 64)), (5, 28, (2 * 56, 3 * 56)), (2, 100, (100, 200)), (3, 64, (128, 128))],
    ids=str,
)
def test_images_grid_chooses_scale_and_columns(
    tmp_path: Path, num_images: int, side: int, shape: tuple[int, int]
) -> None:
    grid = read_grid(write_grid(tmp_path / "a.png", torch.full((num_images, 1, side, side), -1.0)))
    black = (grid == 0).all(axis=-1)
    rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
    assert (len(rows), len(columns)) == shape


def test_images_grid_of_floats_is_that_of_their_bytes(tmp_path: Path) -> None:
    x = (torch.rand(4, 1, 8, 8) * 2.4 - 1.2).requires_grad_()
    one = write_grid(tmp_path / "1.png", x, labels=range(4), title="same")
    two = write_grid(tmp_path / "2.png", to_uint8(x), labels=torch.arange(4), title="same")
    assert one.read_bytes() == two.read_bytes()


def test_images_grid_draws_labels_and_title_beside_the_images(tmp_path: Path) -> None:
    data = digits("test")
    x = data.to_model(data.images[:6])
    bare = read_grid(write_grid(tmp_path / "bare.png", x, columns=3))
    labelled = read_grid(write_grid(tmp_path / "labelled.png", x, columns=3, labels=list("gjpqyQ"), title="gjpqy"))
    assert labelled.shape[0] > bare.shape[0]
    assert labelled.shape[1] == bare.shape[1]
    line = (labelled.shape[0] - bare.shape[0]) // 3
    # Every image is still whole, moved down by the title and by the labels of the rows above.
    for row in range(2):
        top = 4 + row * 68
        moved = top + line * (1 + row)
        assert np.array_equal(labelled[moved : moved + 64], bare[top : top + 64])
        assert (labelled[moved + 64 : moved + 64 + line] < 128).any()
    assert (labelled[: 4 + line] < 128).any()


def test_images_grid_widens_for_long_texts(tmp_path: Path) -> None:
    x = torch.zeros(2, 1, 8, 8)
    text = "a label much longer than the image is wide"
    grid = read_grid(write_grid(tmp_path / "a.png", x, labels=[text, "b"]))
    assert grid.shape[1] > 2 * ImageFont.load_default().getlength(text)
    titled = read_grid(write_grid(tmp_path / "b.png", x, title=text * 3))
    assert titled.shape[1] > ImageFont.load_default().getlength(text * 3)
    # The edge stays clear, so nothing was cut off.
    assert (titled[:, -2:] == 255).all()


@pytest.mark.parametrize("bitmap_font", [False, True])
def test_images_grid_draws_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bitmap_font: bool) -> None:
    if bitmap_font:
        monkeypatch.setattr(ImageFont, "load_default", ImageFont.load_default_imagefont)
    write_grid(tmp_path / "a.png", torch.zeros(3, 1, 8, 8), labels=["日本語", "σ = 3", "two\nlines"], title="ü\tß")


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"pass images\[None\]"),
        (torch.zeros(0, 3, 8, 8), ValueError, "not empty"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), TypeError, "int64"),
        (torch.full((1, 3, 8, 8), torch.nan), ValueError, "192 NaN"),
    ],
    ids=["three-dims", "none", "int64", "nan"],
)
@pytest.mark.parametrize("write", [write_grid, write_npz, write_images])
def test_images_writers_refuse_bad_images(
    tmp_path: Path, write: object, images: torch.Tensor, error: type[Exception], match: str
) -> None:
    target = {write_grid: "a.png", write_npz: "a.npz", write_images: "folder"}[write]  # type: ignore[index]
    with pytest.raises(error, match=match):
        write(tmp_path / target, images)  # type: ignore[operator]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"columns": 0}, "columns must be .*, got 0"),
        ({"scale": 0}, "scale must be .*, got 0"),
        ({"labels": ["a"]}, "got 1 for 2 images"),
    ],
    ids=str,
)
def test_images_grid_refuses_bad_options(tmp_path: Path, options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write_grid(tmp_path / "a.png", torch.zeros(2, 1, 8, 8), **options)  # type: ignore[arg-type]


def test_images_writers_refuse_bad_paths(tmp_path: Path) -> None:
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"a\.jpg: the name must end in \.png"):
        write_grid(tmp_path / "a.jpg", x)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        write_npz(tmp_path / "a", x)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ValueError, match=r"b\.png: is a folder"):
        write_grid(tmp_path / "b.png", x)
    (tmp_path / "file").write_text("x")
    for inner in ("file/a.png", "file/deeper/a.png"):
        with pytest.raises(ValueError, match="a file is in the way"):
            write_grid(tmp_path / inner, x)
    with pytest.raises(ValueError, match="start must be a whole number, at least 0, got -1"):
        write_images(tmp_path, x, start=-1)


def test_images_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "a.npz", torch.zeros(2, 1, 8, 8))
    before = path.read_bytes()

    def fail(file: object, *arrays: np.ndarray) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(images_module.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        write_npz(path, torch.ones(2, 1, 8, 8))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_images_overwriting_puts_a_new_file_in_place(tmp_path: Path) -> None:
    path = write_grid(tmp_path / "a.png", torch.zeros(1, 1, 8, 8))
    os.link(path, tmp_path / "old.png")
    before = path.read_bytes()
    write_grid(path, torch.ones(1, 1, 8, 8))
    assert path.read_bytes() != before
    assert (tmp_path / "old.png").read_bytes() == before


def test_images_written_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = write_grid(tmp_path / "a.png", torch.zeros(1, 1, 8, 8))
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("write", [write_grid, write_images])
@pytest.mark.parametrize("channels", [2, 5])
def test_images_pictures_have_the_channels_of_a_png(tmp_path: Path, write: object, channels: int) -> None:
    target = {write_grid: "a.png", write_images: "folder"}[write]  # type: ignore[index]
    with pytest.raises(ValueError, match=rf"1, 3 or 4.*a picture has no {channels} channels, write \.npz"):
        write(tmp_path / target, torch.zeros(1, channels, 8, 8))  # type: ignore[operator]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
def test_images_archives_take_any_channels_and_read_back(tmp_path: Path, channels: int) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (3, channels, 9, 12), dtype=np.uint8))
    write_npz(tmp_path / "a.npz", images)
    read = load_array(tmp_path / "a.npz", layout="NHWC").images
    assert torch.equal(read, images)
    if channels <= 4:
        assert torch.equal(load_array(tmp_path / "a.npz").images, images)


def test_images_with_alpha_are_written_and_read_whole(tmp_path: Path) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (2, 4, 6, 7), dtype=np.uint8))
    write_images(tmp_path / "a", images)
    assert torch.equal(load_folder(tmp_path / "a", channels=4).images, images)
    # Without it they lie on white.
    alpha = images[:, 3:].double() / 255
    over_white = images[:, :3] * alpha + 255 * (1 - alpha)
    assert (load_folder(tmp_path / "a").images - over_white).abs().max() <= 1
    write_grid(tmp_path / "grid.png", images[:1], scale=1, columns=1)
    grid = read_image(tmp_path / "grid.png")
    assert (grid[:, 2:8, 2:9] - over_white[0].numpy()).__abs__().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 30_000), (30_000, 1), (2, 40_000)])
def test_images_thin_pictures_are_cut_before_they_are_enlarged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    image = Image.fromarray(picture(height, width))
    image.save(tmp_path / "a.png")
    whole = read_image(tmp_path / "a.png", size=32).astype(int)
    assert np.array_equal(whole, as_chw(openai_center_crop_arr(image, 32)))
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    monkeypatch.setattr("fastdiff.files.decoding._MAX_ENLARGED_PIXELS", 1 << 16)
    cut = read_image(tmp_path / "a.png", size=32).astype(int)
    assert max(a * b for a, b in sizes) <= 32 * 32
    # The coefficients of the filter are rounded in another place.
    assert np.abs(cut - whole).max() <= 1


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
