"""Data sets of Hugging Face on the disk: columns by name, splits, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdiff.data.tables import is_table, open_table
from support.pictures import picture, save

datasets = pytest.importorskip("datasets", reason="the extra [datasets] is not installed")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def table(**columns: Any) -> Any:
    pixels = [picture(5, 6) for _ in range(4)]
    features = {
        "img": datasets.Image(),
        "kind": datasets.ClassLabel(names=["cat", "dog"]),
        "number": datasets.Value("int32"),
        "text": datasets.Value("string"),
    }
    held = {"img": [Image.fromarray(one) for one in pixels], "kind": [0, 1, 1, 0], "number": [3, 1, 0, 2]}
    held |= {"text": ["a", "b", "c", "d"]} | columns
    return datasets.Dataset.from_dict(held, features=datasets.Features(features)), pixels


def test_tables_give_pictures_and_labels_of_the_first_such_columns(tmp_path: Path) -> None:
    held, pixels = table()
    held.save_to_disk(tmp_path / "a")
    assert is_table(tmp_path / "a")
    files, labels, names = open_table(tmp_path / "a")
    assert len(files) == 4
    for index, one in enumerate(pixels):
        assert np.array_equal(np.array(Image.open(files.open(index))), one)
    assert labels is not None
    assert labels.tolist() == [0, 1, 1, 0]
    assert names == ("cat", "dog")


def test_tables_take_columns_by_name(tmp_path: Path) -> None:
    table()[0].save_to_disk(tmp_path / "a")
    _, labels, names = open_table(tmp_path / "a", columns={"image": "img", "label": "number"})
    assert labels is not None
    assert labels.tolist() == [3, 1, 0, 2]
    assert names is None


def test_tables_of_files_are_read_from_them(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", picture(4, 4))
    held = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image())
    held.save_to_disk(tmp_path / "set")
    files, labels, _ = open_table(tmp_path / "set")
    assert labels is None
    with Image.open(files.open(0)) as image:
        assert np.array_equal(np.array(image), pixels)


def test_tables_by_split(tmp_path: Path) -> None:
    held = table()[0]
    datasets.DatasetDict({"train": held, "test": held.select([1, 2])}).save_to_disk(tmp_path / "a")
    assert is_table(tmp_path / "a")
    assert len(open_table(tmp_path / "a", split="test")[0]) == 2
    with pytest.raises(ValueError, match="has the splits train, test: give split"):
        open_table(tmp_path / "a")
    with pytest.raises(ValueError, match="unknown split 'tests': did you mean 'test'"):
        open_table(tmp_path / "a", split="tests")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": "imag"}, "unknown column 'imag' for the images: did you mean 'img'"),
        ({"image": "text"}, "column 'text' holds no images"),
        ({"label": "text"}, "column 'text' must hold whole numbers"),
        ({"label": "kinds"}, "unknown column 'kinds' for the labels: did you mean 'kind'"),
        ({"lable": "kind"}, "unknown key 'lable' in columns: did you mean 'label'"),
    ],
    ids=str,
)
def test_tables_refuse_a_wrong_column(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    table()[0].save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / "a", columns=columns)


def test_tables_refuse_labels_below_zero_splits_that_are_not_there_and_damage(tmp_path: Path) -> None:
    table(number=[0, -1, 0, 1])[0].save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match="count from 0, got -1"):
        open_table(tmp_path / "a", columns={"label": "number"})
    with pytest.raises(ValueError, match="has no splits"):
        open_table(tmp_path / "a", split="train")
    arrow = next((tmp_path / "a").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as a data set of Hugging Face"):
        open_table(tmp_path / "a")


def test_tables_digest_follows_their_contents(tmp_path: Path) -> None:
    held = table()[0]
    held.save_to_disk(tmp_path / "a")
    first = open_table(tmp_path / "a")[0].digest()
    assert open_table(tmp_path / "a")[0].digest() == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_table(tmp_path / "b")[0].digest() == first
    table()[0].save_to_disk(tmp_path / "c")
    assert open_table(tmp_path / "c")[0].digest() != first
