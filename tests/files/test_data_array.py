"""NumPy files: layouts, labels, types, and files that are damaged or foreign."""

import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.files.data import (
    DataScaling,
    load_array,
)

RNG = np.random.default_rng(20240229)


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
    with pytest.raises(ValueError, match=r"a\.npy.*give layout=.NHWC. or layout=.NCHW."):
        load_array(path)
    assert np.array_equal(load_array(path, layout="NCHW").images.numpy(), array)
    assert np.array_equal(load_array(path, layout="NHWC").images.numpy(), array.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((5, 8, 6, 5), "may be NHWC or NCHW: give layout"),
        ((5, 4, 8, 2), "may be NHWC or NCHW: give layout"),
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


@pytest.mark.parametrize("dtype", ["int64", "uint32", "int8", "bool", "complex64", "U3", "M8[s]"])
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


@pytest.mark.parametrize("channels", [2, 4, 5, 7])
def test_data_array_takes_any_channels(tmp_path: Path, channels: int) -> None:
    array = RNG.integers(0, 256, (3, channels, 8, 6), dtype=np.uint8)
    path = save_array(tmp_path / "a.npy", array)
    assert np.array_equal(load_array(path, layout="NCHW").images.numpy(), array)
    if channels <= 4:
        assert np.array_equal(load_array(path).images.numpy(), array)
    path = save_array(tmp_path / "b.npy", array.transpose(0, 2, 3, 1))
    assert np.array_equal(load_array(path, layout="NHWC").images.numpy(), array)
