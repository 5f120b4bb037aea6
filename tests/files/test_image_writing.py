"""fastdiff.files.images: the three writers."""

import os
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
from support.pictures import as_chw, openai_center_crop_arr

RNG = np.random.default_rng(20240301)
EXIF_ORIENTATION = 0x0112


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


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
