"""Which kind of source something is, the options that each takes, and where its images are kept."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.data.opening import KINDS, DataOptions, open_images
from support.pictures import RNG, picture, save


def sources(root: Path) -> dict[str, str]:
    """One of each kind, but for data sets of Hugging Face, whose library may be missing."""
    for index in range(4):
        save(root / f"folder/c{index % 2}/{index}.png", picture(8, 8))
        save(root / f"imagenet/train/n0000000{index % 2}/{index}.png", picture(8, 8))
    np.save(root / "a.npy", RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for path in (root / "folder").rglob("*.png"):
            archive.write(path, path.name)
    (root / "cifar").mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (root / f"cifar/{name}.bin").write_bytes(bytes(2 * 3073))
    names = {"folder": "folder", "array": "a.npy", "zip": "a.zip", "cifar10": "cifar", "imagenet": "imagenet"}
    return {kind: str(root / name) for kind, name in names.items()} | {"digits": "digits"}


def test_opening_finds_each_kind(tmp_path: Path) -> None:
    found = {kind: open_images(source) for kind, source in sources(tmp_path).items()}
    kinds = {kind: type(data).__name__ for kind, data in found.items()}
    assert kinds == {
        "folder": "ImageData",
        "array": "ImageData",
        "zip": "PictureImages",
        "cifar10": "ImageData",
        "imagenet": "PictureImages",
        "digits": "ImageData",
    }
    assert all(isinstance(data, fd.data.ImageSource) for data in found.values())


@pytest.mark.parametrize("kind", ["folder", "array", "zip", "imagenet"])
def test_opening_gives_the_same_images_from_memory_disk_and_cache(tmp_path: Path, kind: str) -> None:
    source = sources(tmp_path)[kind]
    kept = [DataOptions(storage="memory"), DataOptions(storage="disk")]
    kept += [DataOptions(cache=str(tmp_path / "cache"))]
    found = [open_images(source, options) for options in kept]
    assert len({type(data) for data in found}) >= 2
    first = found[0]
    for data in found[1:]:
        assert torch.equal(data.read(np.arange(4)), first.read(np.arange(4)))
        assert (data.labels is None) == (first.labels is None)
        assert data.labels is None or torch.equal(data.labels, first.labels)
        assert data.label_names == first.label_names


@pytest.mark.parametrize("option", ["split", "size", "layout", "columns", "workers", "levels", "cache"])
def test_opening_refuses_an_option_of_another_kind(tmp_path: Path, option: str) -> None:
    values = {"split": "train", "size": 4, "layout": "NHWC", "columns": {"image": "a"}, "workers": 2, "levels": 256}
    values["cache"] = str(tmp_path / "cache")
    options = DataOptions(**{option: values[option]})  # type: ignore[arg-type]
    for kind, source in sources(tmp_path).items():
        if option in KINDS[kind][1]:
            open_images(source, options)
        else:
            with pytest.raises(ValueError, match=f"takes no {option}"):
                open_images(source, options)


@pytest.mark.parametrize(
    "options",
    [
        {"storage": "tape"},
        {"storage": "memory", "workers": 2},
        {"storage": "memory", "crop": "random", "size": 4},
        {"workers": 0},
        {"workers": 2.0},
        {"resize": "no"},
        {"skip_corrupt": 3},
        {"columns": ["a"]},
        {"columns": {"image": 3}},
        {"cache": True},
        {"size": [1, 2, 3]},
    ],
    ids=str,
)
def test_opening_refuses_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)) if len(options) == 1 else "storage"):
        DataOptions(**options)


@pytest.mark.parametrize("source", ["gone", "a.txt", ""])
def test_opening_says_what_it_knows(tmp_path: Path, source: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"'digits', a folder of images, .*CIFAR.* (does not exist|not one of them)"):
        open_images(str(tmp_path / source) if source else "")


def test_opening_a_folder_with_the_labels_of_edm(tmp_path: Path) -> None:
    sources(tmp_path)
    (tmp_path / "folder/dataset.json").write_text(
        '{"labels": [["c0/0.png", 5], ["c1/1.png", 3], ["c0/2.png", 4], ["c1/3.png", 0]]}'
    )
    data = open_images(tmp_path / "folder", DataOptions(storage="disk"))
    assert data.labels is not None
    assert data.labels.tolist() == [5, 4, 3, 0]


def test_opening_without_square_images(tmp_path: Path) -> None:
    source = sources(tmp_path)["folder"]
    for storage in ("memory", "disk"):
        assert open_images(source, DataOptions(size=[4, 8], storage=storage)).shape == (3, 4, 8)  # type: ignore[arg-type]
