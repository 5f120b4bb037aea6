"""The cache of decoded pictures: the same images, made once, anew when files change, whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.data.arrays import MappedImages
from fastdiff.data.cache import cached
from fastdiff.data.opening import DataOptions, open_images
from fastdiff.data.source import UnreadableImageError
from fastdiff.files.data import load_folder
from support.pictures import picture, save


def folder(path: Path) -> Path:
    for index in range(6):
        save(path / f"{'ab'[index % 2]}/{index}.png", picture(8, 8))
    return path


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("images-*"))


def test_cache_holds_what_memory_holds_under_the_same_digest(tmp_path: Path) -> None:
    data, held = (
        open_images(folder(tmp_path / "a"), DataOptions(cache=str(tmp_path / "c"))),
        load_folder(tmp_path / "a"),
    )
    assert isinstance(data, MappedImages)
    assert torch.equal(data.read(np.arange(6)), held.images)
    assert torch.equal(data.labels, held.labels)
    for with_labels in (False, True):
        assert data.describe(with_labels=with_labels) == held.describe(with_labels=with_labels)


def test_cache_is_made_once_and_anew_when_files_labels_or_options_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c"

    def opened(**options: Any) -> Any:
        return open_images(tmp_path / "a", DataOptions(cache=str(cache), **options))

    folder(tmp_path / "a")
    opened()
    with monkeypatch.context() as patch:
        patch.setattr("fastdiff.data.cache._fill", lambda *_: pytest.fail("made again"))
        opened()
    opened(size=4)
    assert len(entries(cache)) == 2
    path = tmp_path / "a/a/0.png"
    before = path.stat()
    pixels = save(path, picture(8, 8))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**6))
    assert np.array_equal(opened().read(np.array([0]))[0].numpy(), pixels.transpose(2, 0, 1))
    assert len(entries(cache)) == 3
    (tmp_path / "a/b").rename(tmp_path / "a/0")
    assert opened().labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(entries(cache)) == 4


def test_cache_of_16_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, 4)).astype(np.uint16)
    for index, value in enumerate(values):
        save(tmp_path / f"a/{index}.png", value)
    data = open_images(tmp_path / "a", DataOptions(cache=str(tmp_path / "c"), levels=65536))
    assert np.array_equal(data.read(np.arange(3)).numpy()[:, 0], values)


def test_cache_that_cannot_be_filled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DataOptions(cache=str(tmp_path / "c"))
    path = folder(tmp_path / "a") / "b/3.png"
    contents = path.read_bytes()
    path.write_bytes(contents[:60])
    with pytest.raises(UnreadableImageError, match=r"b/3\.png"):
        open_images(tmp_path / "a", options)
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".lock"]
    path.write_bytes(contents)
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(ValueError, match="the cache cannot be written: No space left"):
            open_images(tmp_path / "a", options)
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".lock"]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(ValueError, match=r"the cache needs .* MiB are free"):
            open_images(tmp_path / "a", options)


def test_cache_skips_as_reading_does(tmp_path: Path) -> None:
    (folder(tmp_path / "a") / "b/3.png").write_text("damaged")
    read = open_images(tmp_path / "a", DataOptions(skip_corrupt=True)).read(np.arange(6))
    data = open_images(tmp_path / "a", DataOptions(skip_corrupt=True, cache=str(tmp_path / "c")))
    assert torch.equal(data.read(np.arange(6)), read)


@pytest.mark.parametrize("damage", ["cut off", "other", "about"])
def test_cache_that_is_damaged_is_named(tmp_path: Path, damage: str) -> None:
    options = DataOptions(cache=str(tmp_path / "c"))
    open_images(folder(tmp_path / "a"), options)
    (entry,) = entries(tmp_path / "c")
    if damage == "cut off":
        (entry / "images.npy").write_bytes((entry / "images.npy").read_bytes()[:300])
    elif damage == "other":
        np.save(entry / "images.npy", np.zeros((2, 3, 8, 8), np.uint8))
    else:
        (entry / "about.json").write_text(json.dumps({"shape": [1]}))
    with pytest.raises(ValueError, match=r"damaged .*: remove it, and it is made anew"):
        open_images(tmp_path / "a", options)


def test_cache_takes_no_random_crops(tmp_path: Path) -> None:
    data: Any = open_images(folder(tmp_path / "a"), DataOptions(size=4, crop="random"))
    with pytest.raises(ValueError, match="one crop of each picture"):
        cached(data, tmp_path / "c")
