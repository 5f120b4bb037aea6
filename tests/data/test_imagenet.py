"""ImageNet's own layout: classes by WordNet's numbers, and lists of val's labels."""

from pathlib import Path
from typing import Any

import pytest

from fastdiff.data.imagenet import is_imagenet, open_imagenet
from support.pictures import picture, save

CLASSES = ("n01440764", "n01443537", "n02110185")


def imagenet(root: Path, *, val: str = "flat") -> Path:
    for index, name in enumerate(CLASSES):
        for number in range(2):
            save(root / f"train/{name}/{name}_{number}.JPEG", picture(8, 8 + index))
    for number in range(1, 5):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        save(root / "val" / ("." if val == "flat" else CLASSES[number % 3]) / name, picture(8, 8))
    return root


def test_imagenet_train_has_the_classes_of_its_folders(tmp_path: Path) -> None:
    assert is_imagenet(imagenet(tmp_path))
    files, labels, names = open_imagenet(tmp_path)
    assert names == CLASSES
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [files.name(index).split("/")[0] for index in range(6)] == [CLASSES[label] for label in labels.tolist()]


def test_imagenet_val_in_folders_of_classes(tmp_path: Path) -> None:
    _, labels, names = open_imagenet(imagenet(tmp_path, val="folders"), split="val")
    assert names == CLASSES
    assert labels.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("kind", ["caffe", "wordnet", "kaggle", "given"])
def test_imagenet_val_with_a_list(tmp_path: Path, kind: str) -> None:
    imagenet(tmp_path)
    order = [2, 0, 1, 1]
    stems = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 5)]
    if kind == "kaggle":
        rows = [f"{stem},{CLASSES[label]} 1 2 3 4 " for stem, label in zip(stems, order, strict=True)]
        (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows[::-1]]))
    else:
        by_name = kind == "wordnet"
        rows = [f"{stem}.JPEG {CLASSES[label] if by_name else label}" for stem, label in zip(stems, order, strict=True)]
        (tmp_path / ("list.txt" if kind == "given" else "val.txt")).write_text("\n".join(rows) + "\n")
    given = tmp_path / "list.txt" if kind == "given" else None
    _, labels, names = open_imagenet(tmp_path, split="val", labels=given)
    assert labels.tolist() == order
    assert names == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no LOC_val_solution"),
        ("", "no lines"),
        ("ILSVRC2012_val_00000001.JPEG 1", "no label for ILSVRC2012_val_00000002"),
        ("ILSVRC2012_val_00000001.JPEG 3", "one of 3 classes"),
        ("ILSVRC2012_val_00000001.JPEG n09999999", "one of 3 classes"),
        ("ILSVRC2012_val_00000001.JPEG -1", "one of 3 classes"),
    ],
    ids=str,
)
def test_imagenet_says_what_is_wrong_with_a_list(tmp_path: Path, text: Any, message: str) -> None:
    imagenet(tmp_path)
    if text is not None:
        (tmp_path / "val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_imagenet(tmp_path, split="val")


def test_imagenet_names_what_lies_in_no_class(tmp_path: Path) -> None:
    save(imagenet(tmp_path) / "train/other/a.png", picture(8, 8))
    with pytest.raises(ValueError, match=r"other/a\.png lies in no folder of a class"):
        open_imagenet(tmp_path)
    with pytest.raises(ValueError, match="split must be"):
        open_imagenet(tmp_path, split="test")  # type: ignore[arg-type]


def test_imagenet_is_not_any_folder(tmp_path: Path) -> None:
    save(tmp_path / "train/cats/a.png", picture(4, 4))
    assert not is_imagenet(tmp_path)
