"""fastdiff.data: scaling, the three sources and their errors, the order of the data."""

import json
import pickle
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdiff.files.data import (
    DataScaling,
    ImageData,
    batch_indices,
    digits,
    flip_mask,
    load,
    load_array,
    load_folder,
    to_uint8,
)

RNG = np.random.default_rng(20240229)


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Random pixels as Pillow takes them: [H, W] or [H, W, 3]."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


# Scaling


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256, 257, 65536])
def test_data_scaling_is_correctly_rounded_and_round_trips(levels: int) -> None:
    scaling = DataScaling(levels)
    values = torch.arange(levels)
    x = scaling.to_model(values)
    exact = 2 * np.arange(levels, dtype=np.float64) / (levels - 1) - 1
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), exact.astype(np.float32))
    back = scaling.to_values(x)
    assert back.dtype == (torch.uint8 if levels <= 256 else torch.int64)
    assert torch.equal(back.to(torch.int64), values)


@settings(deadline=None, max_examples=60)
@given(levels=st.integers(2, 65536), seed=st.integers(0, 2**32 - 1))
def test_data_scaling_round_trips_any_levels(levels: int, seed: int) -> None:
    scaling = DataScaling(levels)
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (3, 5)))
    x = scaling.to_model(values)
    assert float(x.abs().max()) <= 1
    assert torch.equal(scaling.to_values(x).to(torch.int64), values)
    # Antisymmetric: counting from the top changes the sign and nothing else.
    assert torch.equal(scaling.to_model(levels - 1 - values), -x)


@settings(deadline=None, max_examples=60)
@given(
    x=st.floats(allow_nan=False, width=32),
    levels=st.integers(2, 65536),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_data_to_values_takes_the_nearest_and_clamps(x: float, levels: int, dtype: torch.dtype) -> None:
    value = int(DataScaling(levels).to_values(torch.tensor([x], dtype=dtype)))
    ideal = min(max((x + 1) / 2, 0.0), 1.0) * (levels - 1)
    # Half a level, and float32's rounding of x + 1 (2^-24 of up to 2) seen through levels / 2.
    assert abs(value - ideal) <= 0.5 + levels * 2**-23


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_data_to_uint8_rounds_and_clamps_any_float(dtype: torch.dtype) -> None:
    x = torch.tensor([-torch.inf, -2, -1, -0.5, 0.5, 1, 3, torch.inf], dtype=dtype)
    out = to_uint8(x)
    assert out.dtype == torch.uint8
    assert out.tolist() == [0, 0, 0, 64, 191, 255, 255, 255]


def test_data_to_uint8_is_the_inverse_of_to_model() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(DataScaling(256).to_model(values)), values)


def test_data_nan_has_no_value() -> None:
    x = torch.tensor([0.0, torch.nan, torch.nan])
    with pytest.raises(ValueError, match="2 NaN among 3"):
        to_uint8(x)
    with pytest.raises(ValueError, match="2 NaN"):
        DataScaling(17).to_values(x)


def test_data_continuous_scaling_passes_floats_through() -> None:
    scaling = DataScaling(None)
    x = torch.tensor([-1.0, 0.3, 1.0], dtype=torch.float64)
    assert torch.equal(scaling.to_model(x), x.to(torch.float32))
    with pytest.raises(ValueError, match="continuous"):
        scaling.to_values(x)
    with pytest.raises(TypeError, match="uint8"):
        scaling.to_model(torch.zeros(2, dtype=torch.uint8))


@pytest.mark.parametrize("values", [[-1, 3], [0, 17], [200, 0]], ids=str)
def test_data_scaling_refuses_values_out_of_range(values: list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape("0..16")):
        DataScaling(17).to_model(torch.tensor(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_data_scaling_refuses_values_that_are_not_integers(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="integers"):
        DataScaling(256).to_model(torch.zeros(3, dtype=dtype))


def test_data_to_values_refuses_integers() -> None:
    with pytest.raises(TypeError, match="float"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize("levels", [256, 17])
def test_data_scaling_takes_empty_tensors(levels: int) -> None:
    assert DataScaling(levels).to_model(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).shape == (0, 1, 8, 8)
    assert DataScaling(levels).to_values(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("levels", [None, 2, 17, 256])
def test_data_scaling_survives_json(levels: int | None) -> None:
    scaling = DataScaling(levels)
    assert DataScaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling


def test_data_scaling_from_dict_names_the_nearest_key() -> None:
    with pytest.raises(ValueError, match=r"'levls'.*did you mean 'levels'"):
        DataScaling.from_dict({"levls": 256})
    with pytest.raises(ValueError, match="needs the keys"):
        DataScaling.from_dict({})


@pytest.mark.parametrize(
    ("levels", "error"), [(1, ValueError), (0, ValueError), (65537, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_data_scaling_refuses_bad_levels(levels: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="levels"):
        DataScaling(levels)  # type: ignore[arg-type]


# ImageData


def image_data(num_images: int = 6) -> ImageData:
    images = torch.arange(num_images * 3 * 2 * 4, dtype=torch.uint8).reshape(num_images, 3, 2, 4)
    return ImageData(images, torch.arange(num_images) % 2, DataScaling(256), "made up", ("even", "odd"))


def test_data_image_data_reports_length_and_shape() -> None:
    data = image_data()
    assert len(data) == 6
    assert data.shape == (3, 2, 4)
    assert "6 images of 3x2x4" in repr(data)
    assert data.to_model(data.images).dtype == torch.float32


@pytest.mark.parametrize(
    "indices", [[5, 0, 0], (5, 0, 0), np.array([5, 0, 0]), torch.tensor([5, 0, 0], dtype=torch.int32)], ids=type
)
def test_data_take_keeps_order_repeats_and_labels(indices: object) -> None:
    data = image_data()
    taken = data.take(indices)  # type: ignore[arg-type]
    assert torch.equal(taken.images, torch.stack([data.images[5], data.images[0], data.images[0]]))
    assert taken.labels is not None
    assert taken.labels.tolist() == [1, 0, 0]
    assert (taken.scaling, taken.source, taken.label_names) == (data.scaling, data.source, data.label_names)


def test_data_take_nothing_gives_no_images() -> None:
    assert len(image_data().take([])) == 0


def test_data_take_accepts_batch_indices() -> None:
    data = image_data()
    assert data.take(batch_indices(len(data), 4, 3, 0)).images.shape == (4, 3, 2, 4)


@pytest.mark.parametrize(
    ("indices", "error"),
    [([6], IndexError), ([-1], IndexError), ([0.0], TypeError), ([True] * 6, TypeError), ([[0]], ValueError)],
    ids=str,
)
def test_data_take_refuses_bad_indices(indices: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="indices"):
        image_data().take(indices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "labels", "levels", "error"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), None, 256, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.float64), None, None, TypeError),
        (torch.zeros(2, 3, 8, 8), None, 256, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, None, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, 1000, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), 256, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2), 256, TypeError),
    ],
    ids=["three-dims", "float64", "float-levels", "uint8-continuous", "uint8-1000", "three-labels", "float-labels"],
)
def test_data_image_data_refuses_inconsistent_parts(
    images: torch.Tensor, labels: torch.Tensor | None, levels: int | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ImageData(images, labels, DataScaling(levels), "made up")


# The digits


def test_data_digits_have_the_known_counts() -> None:
    data, train, test = digits("all"), digits("train"), digits("test")
    assert [len(data), len(train), len(test)] == [1797, 1437, 360]
    assert data.shape == (1, 8, 8)
    assert data.scaling == DataScaling(17)
    assert data.images.dtype == torch.uint8
    assert (int(data.images.min()), int(data.images.max())) == (0, 16)
    assert data.labels is not None
    assert data.labels[:10].tolist() == list(range(10))
    assert torch.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_data_digits_split_follows_the_written_rule() -> None:
    data, train, test = digits("all"), digits(), digits("test")
    assert data.labels is not None
    by_class = [index for label in range(10) for index in range(1797) if data.labels[index] == label]
    held_out = sorted(by_class[::5])
    assert torch.equal(test.images, data.images[held_out])
    kept = sorted(set(range(1797)) - set(held_out))
    assert torch.equal(train.images, data.images[kept])
    assert train.labels is not None
    assert torch.equal(train.labels, data.labels[kept])


def test_data_digits_split_is_balanced() -> None:
    data, test = digits("all"), digits("test")
    assert data.labels is not None
    assert test.labels is not None
    expected = torch.bincount(data.labels) / 5
    assert float((torch.bincount(test.labels) - expected).abs().max()) < 1


def test_data_digits_reach_both_ends_of_the_model_range() -> None:
    data = digits("test")
    x = data.to_model(data.images)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert torch.equal(data.scaling.to_values(x), data.images)


def test_data_digits_refuse_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="'train', 'test' or 'all', got 'val'"):
        digits("val")  # type: ignore[arg-type]


def test_data_digits_without_sklearn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RuntimeError, match=re.escape('pip install "fastdiff-ddpm[demo]"')):
        digits()


# A folder of images


def test_data_folder_reads_pixels_in_path_order(tmp_path: Path) -> None:
    made = {name: save(tmp_path / name, picture(5, 7)) for name in ("c.png", "a.BMP", "d/e.gif.png", "b.tif")}
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_folder(tmp_path)
    expected = [made[name] for name in ("a.BMP", "b.tif", "c.png", "d/e.gif.png")]
    assert data.images.dtype == torch.uint8
    assert data.images.is_contiguous()
    assert np.array_equal(data.images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    assert data.labels is None
    assert data.label_names is None
    assert data.source == str(tmp_path)
    assert data.scaling == DataScaling(256)


def test_data_folder_order_ignores_creation_order(tmp_path: Path) -> None:
    names = ["b/1.png", "b/10.png", "b/2.png", "a-x/1.png", "a/1.png", "Z/1.png"]
    pixels = {name: picture(4, 4) for name in names}
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            save(tmp_path / folder / name, pixels[name])
    one, two = load_folder(tmp_path / "one"), load_folder(str(tmp_path / "two"))
    assert torch.equal(one.images, two.images)
    assert np.array_equal(one.images.numpy(), np.stack([pixels[n] for n in sorted(names)]).transpose(0, 3, 1, 2))
    assert one.label_names == ("Z", "a", "a-x", "b")
    assert one.labels is not None
    assert one.labels.tolist() == [0, 2, 1, 3, 3, 3]


def test_data_folder_labels_first_level_folders_with_images(tmp_path: Path) -> None:
    for name in ("cat/x/1.png", "cat/y/2.png", "dog/1.png"):
        save(tmp_path / name, picture(4, 4))
    (tmp_path / "ant").mkdir()
    data = load_folder(tmp_path)
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [0, 0, 1]
    assert data.label_names == ("cat", "dog")


def test_data_folder_has_no_labels_when_an_image_has_no_folder(tmp_path: Path) -> None:
    save(tmp_path / "cat/1.png", picture(4, 4))
    save(tmp_path / "1.png", picture(4, 4))
    assert load_folder(tmp_path).labels is None


def test_data_folder_skips_hidden_names(tmp_path: Path) -> None:
    save(tmp_path / "1.png", picture(4, 4))
    (tmp_path / "._1.png").write_bytes(b"AppleDouble")
    save(tmp_path / ".thumbnails/1.png", picture(2, 2))
    assert len(load_folder(tmp_path)) == 1


def test_data_folder_follows_links_without_looping(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/1.png", picture(4, 4))
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(root)
    data = load_folder(root)
    assert len(data) == 1
    assert data.label_names == ("cat",)


def test_data_folder_of_grey_images_has_one_channel(tmp_path: Path) -> None:
    made = [save(tmp_path / f"{i}.png", picture(4, 6, channels=1)) for i in range(3)]
    assert np.array_equal(load_folder(tmp_path).images.numpy(), np.stack(made)[:, None])
    assert np.array_equal(load_folder(tmp_path, channels=3).images.numpy(), np.stack([made] * 3, axis=1))


def test_data_folder_of_grey_and_colour_becomes_colour(tmp_path: Path) -> None:
    grey = [save(tmp_path / f"{i}.png", picture(4, 6, channels=1)) for i in (0, 1, 3)]
    colour = save(tmp_path / "2.png", picture(4, 6))
    images = load_folder(tmp_path).images.numpy()
    assert images.shape == (4, 3, 4, 6)
    assert np.array_equal(images[2], colour.transpose(2, 0, 1))
    for channel in range(3):
        assert np.array_equal(images[[0, 1, 3], channel], np.stack(grey))
    luma = load_folder(tmp_path, channels=1).images.numpy()
    assert np.array_equal(luma[2, 0], np.asarray(Image.fromarray(colour).convert("L")))


def test_data_folder_resizes_mixed_sizes(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(9, 30), (64, 64), (3, 5)]):
        save(tmp_path / f"{i}.png", picture(height, width))
    assert load_folder(tmp_path, size=16).images.shape == (3, 3, 16, 16)


def test_data_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: no such folder"):
        load_folder(tmp_path / "gone")


def test_data_folder_that_is_a_file(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(4, 4))
    with pytest.raises(ValueError, match=r"a\.png: not a folder"):
        load_folder(tmp_path / "a.png")


def test_data_folder_empty_says_what_it_looked_for(tmp_path: Path) -> None:
    for name in ("a.txt", "b.mp4"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"no images.*\.png.*\.webp.*saw 2 other files"):
        load_folder(tmp_path)


def test_data_folder_mixed_sizes_name_two_files(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(4, 6))
    save(tmp_path / "b.png", picture(4, 6))
    save(tmp_path / "c.png", picture(6, 4))
    with pytest.raises(ValueError, match=r"a\.png of 6x4 and c\.png of 4x6 pixels: pass size="):
        load_folder(tmp_path)


def test_data_folder_lists_unreadable_images_together(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(40, 40))
    (tmp_path / "text.png").write_text("this is text, renamed")
    save(tmp_path / "cut.jpg", picture(40, 40))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-300])
    save(tmp_path / "half.png", picture(40, 40))
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:1000])
    (tmp_path / "nothing.webp").write_bytes(b"")
    with pytest.raises(ValueError, match="4 images in") as caught:
        load_folder(tmp_path)
    message = str(caught.value)
    for part in ("text.png: not an image", "cut.jpg: image file is truncated", "half.png: ", "nothing.webp: not an"):
        assert part in message
    assert "a.png" not in message.replace("half.png", "")


def test_data_folder_stops_after_five_unreadable_images(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.png").write_text("text")
    with pytest.raises(ValueError, match=r"5 images in .*and maybe more") as caught:
        load_folder(tmp_path)
    assert str(caught.value).count("not an image") == 5


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 8.5}, {"channels": 2}], ids=str)
def test_data_folder_refuses_bad_options(tmp_path: Path, options: dict[str, int]) -> None:
    save(tmp_path / "a.png", picture(4, 4))
    with pytest.raises(ValueError, match=next(iter(options))):
        load_folder(tmp_path, **options)  # type: ignore[arg-type]


# NumPy files


def save_array(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


NHWC = RNG.integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (NHWC, NHWC.transpose(0, 3, 1, 2)),
        (NHWC.transpose(0, 3, 1, 2), NHWC.transpose(0, 3, 1, 2)),
        (np.asfortranarray(NHWC), NHWC.transpose(0, 3, 1, 2)),
        (NHWC[..., :1], NHWC[..., 0][:, None]),
        (NHWC[..., 0], NHWC[..., 0][:, None]),
    ],
    ids=["NHWC", "NCHW", "fortran", "NHW1", "NHW"],
)
def test_data_array_reads_every_layout(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    data = load_array(save_array(tmp_path / "a.npy", array))
    assert data.images.dtype == torch.uint8
    assert data.images.is_contiguous()
    assert np.array_equal(data.images.numpy(), expected)
    assert data.scaling == DataScaling(256)
    assert data.labels is None


@pytest.mark.parametrize("keys", [("arr_0", "arr_1"), ("images", "labels")], ids=str)
@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_data_array_reads_npz_with_labels(tmp_path: Path, keys: tuple[str, str], saver: object) -> None:
    labels = np.array([3, 0, 1, 1, 2], dtype=np.uint16)
    saver(tmp_path / "a.npz", **{keys[0]: NHWC, keys[1]: labels, "mu": np.zeros(3)})  # type: ignore[operator]
    data = load_array(tmp_path / "a.npz")
    assert np.array_equal(data.images.numpy(), NHWC.transpose(0, 3, 1, 2))
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [3, 0, 1, 1, 2]


def test_data_array_takes_labels_from_a_second_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=NHWC, arr_1=np.zeros(5, dtype=np.int64))
    path = save_array(tmp_path / "labels.npy", np.arange(5))
    data = load_array(tmp_path / "a.npz", labels=path)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_data_array_keeps_floats_in_range(tmp_path: Path, dtype: str) -> None:
    array = RNG.uniform(-1, 1, (4, 8, 6, 3)).astype(dtype)
    array[0, 0, 0, 0], array[0, 0, 0, 1] = -1, 1
    data = load_array(save_array(tmp_path / "a.npy", array))
    assert data.images.dtype == torch.float32
    assert data.scaling == DataScaling(None)
    assert np.array_equal(data.images.numpy(), array.astype(np.float32).transpose(0, 3, 1, 2))


def test_data_array_does_not_hold_on_to_the_file(tmp_path: Path) -> None:
    array = np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2))
    path = save_array(tmp_path / "a.npy", array)
    data = load_array(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert np.array_equal(data.images.numpy(), array)


@pytest.mark.parametrize("shape", [(5, 3, 8, 3), (5, 1, 8, 1), (5, 3, 8, 1)], ids=str)
def test_data_array_with_two_possible_layouts_asks(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    path = save_array(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r'a\.npy.*pass layout="NHWC" or layout="NCHW"'):
        load_array(path)
    assert np.array_equal(load_array(path, layout="NCHW").images.numpy(), array)
    assert np.array_equal(load_array(path, layout="NHWC").images.numpy(), array.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((5, 8, 6, 2), "no 1 or 3 channels read as NHWC or as NCHW"),
        ((5, 4, 8, 6), "no 1 or 3 channels"),
        ((8, 6), "got shape"),
        ((), "got shape"),
        ((1, 5, 8, 6, 3), "got shape"),
        ((0, 8, 6, 3), "empty"),
        ((5, 0, 6, 3), "empty"),
        ((0,), "got shape"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_data_array_refuses_other_shapes(tmp_path: Path, shape: tuple[int, ...], match: str, dtype: type) -> None:
    with pytest.raises(ValueError, match=rf"a\.npy.*{match}"):
        load_array(save_array(tmp_path / "a.npy", np.zeros(shape, dtype)))


def test_data_array_refuses_a_layout_that_does_not_fit(tmp_path: Path) -> None:
    path = save_array(tmp_path / "a.npy", NHWC)
    with pytest.raises(ValueError, match="read as NCHW"):
        load_array(path, layout="NCHW")
    with pytest.raises(ValueError, match="'NHWC', 'NCHW' or None, got 'CHW'"):
        load_array(path, layout="CHW")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int64", "uint16", "int8", "bool", "complex64", "U3", "M8[s]"])
def test_data_array_refuses_other_types(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match=r"a\.npy: images must be uint8 .* or float"):
        load_array(save_array(tmp_path / "a.npy", np.zeros((5, 8, 6, 3), dtype)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_data_array_counts_and_places_what_is_not_finite(tmp_path: Path, bad: float) -> None:
    array = np.zeros((4, 8, 6, 3), np.float32) - 0.5
    array[2, 7, 0, 1] = array[3, 0, 0, 0] = bad
    with pytest.raises(
        ValueError, match=re.escape("2 of 576 values are NaN or infinite, the first at index [2, 7, 0, 1]")
    ):
        load_array(save_array(tmp_path / "a.npy", array))


@pytest.mark.parametrize("value", [1.0001, -1.5, 255.0], ids=str)
def test_data_array_refuses_floats_out_of_range(tmp_path: Path, value: float) -> None:
    array = np.zeros((4, 8, 6, 3), np.float32)
    array[1, 1, 1, 1] = value
    with pytest.raises(ValueError, match=r"must be in \[-1, 1\], got .*: store 0..255 as uint8"):
        load_array(save_array(tmp_path / "a.npy", array))


def test_data_array_warns_of_a_zero_to_one_range(tmp_path: Path) -> None:
    path = save_array(tmp_path / "a.npy", RNG.random((4, 8, 6, 3), np.float32))
    with pytest.warns(UserWarning, match=r"if they are in \[0, 1\]"):
        load_array(path)


def test_data_array_missing_key_lists_those_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pictures=NHWC, classes=np.zeros(5))
    with pytest.raises(ValueError, match=r"a\.npz: none of the keys arr_0, images.* only pictures, classes"):
        load_array(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", labels=np.zeros(5, np.int64))
    with pytest.raises(ValueError, match=r"b\.npz: images must be under the key .* got only labels"):
        load_array(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"c\.npz: none of the keys .* only nothing"):
        load_array(tmp_path / "c.npz")


class Bomb:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("an object was unpickled",)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_data_array_never_unpickles(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    objects = np.array([Bomb()] * 3, dtype=object)
    if suffix == "npy":
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, arr_0=objects)
    with pytest.raises(ValueError, match=rf"a\.{suffix}: holds pickled Python objects"):
        load_array(path)


def test_data_array_refuses_a_bare_pickle(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"a\.npy: not a NumPy"):
        load_array(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUM", b"hello, this is text", b"\x89PNG\r\n\x1a\n"], ids=repr)
def test_data_array_refuses_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: not a NumPy"):
        load_array(tmp_path / "a.npz")


def test_data_array_refuses_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", "text")
    with pytest.raises(ValueError, match=r"a\.npz: .*(images is not a NumPy array|damaged)"):
        load_array(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("kept", [8, 60, 200, -1], ids=str)
def test_data_array_refuses_truncated_files(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, NHWC)
    else:
        np.savez(path, NHWC)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: damaged"):
        load_array(path)


@settings(deadline=None, max_examples=80)
@given(suffix=st.sampled_from(["npy", "npz"]), where=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_data_array_meets_any_damage_with_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, where: float, byte: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("damage") / f"a.{suffix}"
    small = NHWC[:2, :2, :2]
    if suffix == "npy":
        np.save(path, small)
    else:
        np.savez_compressed(path, small)
    content = bytearray(path.read_bytes())
    position = min(int(where * len(content)), len(content) - 1)
    content[position] = byte
    path.write_bytes(content[: position + 1] if cut else content)
    try:
        outcome = str(load_array(path, layout="NHWC"))
    except ValueError as error:
        outcome = str(error)
    assert f"a.{suffix}" in outcome


def test_data_array_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.npz: no such file"):
        load_array(tmp_path / "gone.npz")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.zeros(4, np.int64), r"must be \[5\]"),
        (np.zeros((5, 1), np.int64), r"must be \[5\]"),
        (np.zeros(5, np.float32), "must be integers"),
        (np.array([0, 1, -1, 0, 0]), "count from 0, got -1"),
    ],
    ids=["four", "column", "float", "negative"],
)
def test_data_array_refuses_bad_labels(tmp_path: Path, labels: np.ndarray, match: str) -> None:
    np.savez(tmp_path / "a.npz", arr_0=NHWC, arr_1=labels)
    with pytest.raises(ValueError, match=rf"a\.npz: labels .*{match}"):
        load_array(tmp_path / "a.npz")


# One entry for all


def test_data_load_finds_the_source(tmp_path: Path) -> None:
    assert load("digits").source == "digits/train"
    assert load("digits", split="test").source == "digits/test"
    save(tmp_path / "folder/a.png", picture(9, 9))
    assert load(tmp_path / "folder", size=4, channels=1).shape == (1, 4, 4)
    path = save_array(tmp_path / "a.npy", NHWC)
    assert load(str(path), layout="NHWC").shape == (3, 8, 6)
    np.savez(tmp_path / "b.npz", NHWC)
    assert len(load(tmp_path / "b.npz", labels=save_array(tmp_path / "l.npy", np.arange(5)))) == 5


def test_data_load_prefers_the_digits_to_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "digits/a.png", picture(9, 9))
    monkeypatch.chdir(tmp_path)
    assert load("digits").shape == (1, 8, 8)
    assert load("./digits").shape == (3, 9, 9)


def test_data_load_lists_what_it_accepts(tmp_path: Path) -> None:
    accepted = "'digits', a folder of images, or a .npz or .npy file"
    save(tmp_path / "a.png", picture(9, 9))
    with pytest.raises(ValueError, match=re.escape(accepted) + r".*a\.png' is not one of them"):
        load(tmp_path / "a.png")
    with pytest.raises(ValueError, match=re.escape(accepted) + r".*'cifar10' does not exist"):
        load("cifar10")
    with pytest.raises(ValueError, match=re.escape(accepted)):
        load("")


@pytest.mark.parametrize(
    ("source", "options"),
    [("digits", {"size": 8}), ("folder", {"split": "test"}), ("a.npy", {"channels": 3}), ("a.npy", {"size": 8})],
    ids=str,
)
def test_data_load_refuses_options_of_another_source(tmp_path: Path, source: str, options: dict[str, object]) -> None:
    (tmp_path / "folder").mkdir()
    save_array(tmp_path / "a.npy", NHWC)
    with pytest.raises(ValueError, match=f"takes no {next(iter(options))}="):
        load(source if source == "digits" else tmp_path / source, **options)  # type: ignore[arg-type]


# The order of the data


@settings(deadline=None, max_examples=60)
@given(
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 100),
    seed=st.integers(-(2**70), 2**70),
    num_epochs=st.integers(1, 5),
)
def test_data_batches_visit_every_image_once_per_epoch(
    num_images: int, batch_size: int, seed: int, num_epochs: int
) -> None:
    num_steps = -(-num_images * num_epochs // batch_size)
    batches = [batch_indices(num_images, batch_size, step, seed) for step in range(num_steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    epochs = np.concatenate(batches)[: num_images * num_epochs].reshape(num_epochs, num_images)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_images), (num_epochs, 1)))


def test_data_batches_do_not_depend_on_the_order_of_calls() -> None:
    steps = list(range(60))
    forward = {step: batch_indices(37, 10, step, 5).copy() for step in steps}
    for step in np.random.default_rng(0).permutation(steps).tolist() + steps[::-1]:
        assert np.array_equal(batch_indices(37, 10, step, 5), forward[step])


def test_data_batches_do_not_depend_on_the_batch_size() -> None:
    whole = batch_indices(37, 120, 0, 5)
    assert np.array_equal(np.concatenate([batch_indices(37, 8, step, 5) for step in range(15)]), whole)


def test_data_batches_differ_between_seeds_and_epochs() -> None:
    epochs = [tuple(batch_indices(100, 100, epoch, seed)) for epoch in range(5) for seed in (0, 1, 2**32, 2**63)]
    assert len(set(epochs)) == len(epochs)


def test_data_batches_take_seeds_modulo_two_to_the_64() -> None:
    assert np.array_equal(batch_indices(50, 50, 0, -1), batch_indices(50, 50, 0, 2**64 - 1))
    assert np.array_equal(batch_indices(50, 50, np.int64(3), np.int32(7)), batch_indices(50, 50, 3, 7))  # type: ignore[arg-type]


def test_data_batches_are_pinned() -> None:
    # A change here, be it ours or NumPy's, breaks the resumption of everyone's runs: it wants a major version.
    assert batch_indices(10, 10, 0, 0).tolist() == [4, 3, 7, 1, 5, 6, 2, 0, 9, 8]
    assert batch_indices(10, 10, 1, 0).tolist() == [9, 2, 8, 7, 3, 6, 4, 5, 0, 1]


def test_data_batches_can_be_changed_by_the_caller() -> None:
    batch = batch_indices(8, 8, 0, 0)
    expected = batch.copy()
    batch[:] = 0
    assert np.array_equal(batch_indices(8, 8, 0, 0), expected)


def test_data_batches_of_late_steps_are_cheap() -> None:
    assert sorted(batch_indices(8, 8, 10**15, 0).tolist()) == list(range(8))


@pytest.mark.parametrize("bad", [{"num_images": 0}, {"batch_size": 0}, {"step": -1}], ids=str)
def test_data_batches_refuse_bad_arguments(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be .*, got {next(iter(bad.values()))}"):
        batch_indices(**{"num_images": 8, "batch_size": 4, "step": 0, "seed": 0, **bad})


# Flips


def test_data_flips_are_pinned_to_seed_step_and_position() -> None:
    mask = flip_mask(64, 7, 3)
    assert mask.shape == (64,)
    assert mask.dtype == np.bool_
    assert np.array_equal(flip_mask(64, 7, 3), mask)
    assert np.array_equal(flip_mask(13, 7, 3), mask[:13])
    assert not np.array_equal(flip_mask(64, 8, 3), mask)
    assert not np.array_equal(flip_mask(64, 7, 4), mask)
    assert flip_mask(0, 7, 3).shape == (0,)
    assert np.flatnonzero(flip_mask(16, 0, 0)).tolist() == [1, 5, 7, 13, 14, 15]


def test_data_flips_are_fair_and_independent() -> None:
    masks = np.stack([flip_mask(100, step, 0) for step in range(400)]).astype(np.float64)
    # 40,000 fair coins: five standard deviations are 0.0125; of 400 or 100 alone 0.125 and 0.25.
    assert abs(masks.mean() - 0.5) < 0.0125
    assert np.abs(masks.mean(axis=0) - 0.5).max() < 0.125
    assert np.abs(masks.mean(axis=1) - 0.5).max() < 0.25
    # Neighbours in a batch, and one position in successive steps, agree half the time.
    assert abs((masks[:, 1:] == masks[:, :-1]).mean() - 0.5) < 0.0125
    assert abs((masks[1:] == masks[:-1]).mean() - 0.5) < 0.0125


@pytest.mark.parametrize(("batch_size", "step"), [(-1, 0), (4, -1), (4, 2**62)], ids=str)
def test_data_flips_refuse_bad_arguments(batch_size: int, step: int) -> None:
    with pytest.raises(ValueError, match="batch_size" if batch_size < 0 else "step"):
        flip_mask(batch_size, step, 0)
