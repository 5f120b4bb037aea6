"""Arrays that stay on the disk: the same images as in memory, mapped; and what is refused."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.data.arrays import MappedImages, map_array
from fastdiff.data.source import ImageSource, UnreadableImageError
from fastdiff.files.data import load_array
from support.pictures import RNG

ALL = np.arange(6)


def pixels(kind: str, shape: tuple[int, ...] = (6, 5, 7, 3)) -> np.ndarray:
    if kind == "float32":
        return RNG.uniform(-1, 1, shape).astype(np.float32)
    return RNG.integers(0, np.iinfo(kind).max + 1, shape).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_on_disk_are_those_in_memory(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    stored, labels = pixels(kind), np.arange(6) % 4
    np.save(path, stored) if suffix == "npy" else np.savez(path, stored, labels)
    mapped, held = map_array(path), load_array(path)
    assert isinstance(mapped, ImageSource)
    assert isinstance(mapped.array.base, np.memmap) or isinstance(mapped.array, np.memmap)
    assert mapped.shape == held.shape == (3, 5, 7)
    assert mapped.scaling == held.scaling
    order = np.array([4, 0, 4])
    assert torch.equal(mapped.read(order), held.read(order))
    assert mapped.read(order).dtype == {"uint8": torch.uint8, "uint16": torch.int32, "float32": torch.float32}[kind]
    if suffix == "npz":
        assert mapped.labels is not None
        assert mapped.labels.tolist() == labels.tolist()


def test_arrays_of_any_number_of_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels("uint8", (4, 11, 8, 6)))
    assert map_array(tmp_path / "a.npy", layout="NCHW").shape == (11, 8, 6)


def test_arrays_are_cut_in_the_center_or_where_the_words_say(tmp_path: Path) -> None:
    stored = pixels("uint8", (6, 9, 12, 3))
    np.save(tmp_path / "a.npy", stored)
    center = map_array(tmp_path / "a.npy", size=(4, 8)).read(ALL)
    assert np.array_equal(center.numpy(), stored[:, 2:6, 2:10].transpose(0, 3, 1, 2))
    data = map_array(tmp_path / "a.npy", size=4, crop="random")
    assert data.num_draws == 2
    draws = RNG.integers(0, 2**32, (6, 2)).astype(np.uint32)
    read = data.read(ALL, draws).numpy()
    for index, (down, across) in enumerate(draws.astype(np.uint64)):
        top, left = int(down * np.uint64(6)) >> 32, int(across * np.uint64(9)) >> 32
        assert np.array_equal(read[index], stored[index, top : top + 4, left : left + 4].transpose(2, 0, 1))


def test_arrays_that_are_compressed_are_refused_or_extracted(tmp_path: Path) -> None:
    stored = pixels("uint8")
    np.savez_compressed(tmp_path / "a.npz", images=stored, labels=np.arange(6))
    with pytest.raises(ValueError, match=r"a\.npz: is compressed .* cache"):
        map_array(tmp_path / "a.npz")
    for _ in range(2):
        data = map_array(tmp_path / "a.npz", cache=tmp_path / "cache")
        assert np.array_equal(data.read(ALL).numpy(), stored.transpose(0, 3, 1, 2))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    np.savez(tmp_path / "b.npz", images=stored, labels=np.arange(6))
    assert (
        data.describe(with_labels=True)["digest"] == map_array(tmp_path / "b.npz").describe(with_labels=True)["digest"]
    )


def test_arrays_are_described_by_a_digest_of_their_file(tmp_path: Path) -> None:
    def digest(path: Path, **options: Any) -> str:
        return str(map_array(path, **options).describe(with_labels=True)["digest"])

    stored = pixels("uint8")
    np.save(tmp_path / "a.npy", stored)
    first = digest(tmp_path / "a.npy")
    (tmp_path / "moved").mkdir()
    np.save(tmp_path / "moved/b.npy", stored)
    assert digest(tmp_path / "moved/b.npy") == first
    stored[3, 2, 1, 0] ^= 1
    np.save(tmp_path / "moved/b.npy", stored)
    assert digest(tmp_path / "moved/b.npy") != first
    np.save(tmp_path / "labels.npy", np.arange(6))
    with_labels = digest(tmp_path / "a.npy", labels=tmp_path / "labels.npy")
    np.save(tmp_path / "labels.npy", np.arange(6)[::-1])
    assert digest(tmp_path / "a.npy", labels=tmp_path / "labels.npy") != with_labels
    # Of what a zip holds, every byte counts, and none is read.
    np.savez(tmp_path / "a.npz", images=stored)
    before = digest(tmp_path / "a.npz")
    stored[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "a.npz", images=stored)
    assert digest(tmp_path / "a.npz") != before


@pytest.mark.parametrize(
    ("kind", "value", "levels", "message"),
    [
        ("uint8", 200, 17, r"image 3 must be in 0\.\.16, got 200"),
        ("uint16", 5000, 4096, r"image 3 must be in 0\.\.4095, got 5000"),
        ("float32", 1.5, None, r"image 3 must be numbers in \[-1, 1\], got 1\.5"),
        ("float32", np.nan, None, r"image 3 must be numbers in \[-1, 1\], got nan"),
    ],
    ids=str,
)
def test_arrays_name_the_image_whose_values_do_not_fit(
    tmp_path: Path, kind: str, value: float, levels: int | None, message: str
) -> None:
    stored = np.zeros((6, 4, 4), kind)
    stored[3, 1, 2] = value
    np.save(tmp_path / "a.npy", stored)
    data = map_array(tmp_path / "a.npy", levels=levels)
    data.check()
    assert len(data.read(np.array([0, 1, 2, 4, 5]))) == 5
    with pytest.raises(UnreadableImageError, match=message):
        data.read(ALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "8x8 pixels cannot be cut out of images of 7x5"),
        ({"crop": "random"}, "size"),
        ({"crop": "left"}, "crop must be"),
        ({"levels": 257}, "levels"),
        ({"layout": "CHWN"}, "layout"),
        ({"labels": "gone.npy"}, r"gone\.npy"),
    ],
    ids=str,
)
def test_arrays_refuse_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "a.npy", pixels("uint8"))
    with pytest.raises(ValueError, match=message):
        map_array(tmp_path / "a.npy", **options)


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "a.npz"
    np.savez(path, images=pixels("uint8"))
    contents = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(contents[: len(contents) // 2])
    elif kind == "no images":
        np.savez(path, pictures=pixels("uint8"))
    elif kind == "objects":
        np.savez(path, images=np.array([{}], dtype=object))
    elif kind == "short":
        with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive, zipfile.ZipFile(path) as old:
            archive.writestr("images.npy", old.read("images.npy")[:-5])
        return tmp_path / "b.npz"
    elif kind == "text":
        path.write_text("no zip")
    return path


@pytest.mark.parametrize("kind", ["cut off", "no images", "objects", "short", "text"])
def test_arrays_that_are_damaged_are_named(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(ValueError, match=path.name):
        map_array(path)


def test_arrays_in_memory_order_of_fortran_are_read(tmp_path: Path) -> None:
    stored = np.asfortranarray(pixels("uint8"))
    np.savez(tmp_path / "a.npz", images=stored)
    data = map_array(tmp_path / "a.npz")
    assert isinstance(data, MappedImages)
    assert np.array_equal(data.read(ALL).numpy(), stored.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, suffix: str) -> None:
    """Without the look at its size the process would be killed."""
    path = tmp_path / f"a.{suffix}"
    stored = pixels("uint8", (60, 16, 16, 3))
    np.save(path, stored) if suffix == "npy" else np.savez(path, stored)
    data = map_array(path, size=8)
    data.read(ALL)
    held = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(UnreadableImageError, match=r"took 46,\d{3} bytes when it was opened, and it has 20,000 now"):
        data.read(ALL + 50)
    path.write_bytes(held)
    assert torch.equal(data.read(ALL), torch.from_numpy(stored[:6, 4:12, 4:12].transpose(0, 3, 1, 2).copy()))
