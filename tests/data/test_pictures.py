"""Pictures that are decoded as they are needed: the same as in memory; sizes, colours and damage."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import pictures
from fastdiff.data.pictures import FolderFiles, PictureImages, open_pictures
from fastdiff.data.source import ImageSource, UnreadableImageError
from fastdiff.files.data import load_folder
from fastdiff.files.decoding import Decoding
from fastdiff.files.images import list_images
from support.pictures import picture

ALL = np.arange(6)


def folder(path: Path, num: int = 6, *, grey: bool = False, classes: int = 0, size: tuple[int, int] = (9, 12)) -> Path:
    for index in range(num):
        inside = path / (f"c{index % classes}" if classes else ".")
        inside.mkdir(parents=True, exist_ok=True)
        pixels = picture(*size)
        Image.fromarray(pixels[..., 0] if grey else pixels).save(inside / f"{index}.png")
    return path


def opened(path: Path, decoding: Decoding | None = None, **options: Any) -> PictureImages:
    names = [name.as_posix() for name in list_images(path)]
    plain: dict[str, Any] = {"labels": None, "label_names": None, "source": "pictures", "workers": 2}
    return open_pictures(FolderFiles(path, names), decoding or Decoding(), **plain | options)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [None, 8, (4, 8)], ids=str)
def test_pictures_on_disk_are_those_in_memory(tmp_path: Path, grey: bool, size: Any) -> None:
    folder(tmp_path, grey=grey)
    data, held = opened(tmp_path, Decoding(size)), load_folder(tmp_path, size=size)
    assert isinstance(data, ImageSource)
    assert data.shape == held.shape
    order = np.array([5, 1, 1])
    assert torch.equal(data.read(order), held.read(order))


def test_small_sets_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn = opened(folder(tmp_path)), opened(tmp_path, Decoding(8, crop="random"))
    first = data.read(ALL)
    words = np.zeros((1, 2), np.uint32)
    drawn.read(ALL[:1], words)
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "KEPT_BYTES", 1000)
        large = opened(tmp_path)
        large.read(ALL)
    (tmp_path / "0.png").unlink()
    assert torch.equal(data.read(ALL[::-1].copy()), first.flip(0))
    for subject, given in ((drawn, words), (large, None)):
        with pytest.raises(UnreadableImageError, match=r"0\.png"):
            subject.read(ALL[:1], given)


def test_pictures_of_grey_among_colours_are_copied_into_each(tmp_path: Path) -> None:
    folder(tmp_path)
    Image.fromarray(picture(9, 12)[..., 0]).save(tmp_path / "3.png")
    data = opened(tmp_path)
    assert data.shape == (3, 9, 12)
    assert torch.equal(data.read(ALL), load_folder(tmp_path).images)


def test_pictures_of_16_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 6, 6)).astype(np.uint16)
    for index, value in enumerate(values):
        Image.fromarray(value).save(tmp_path / f"{index}.png")
    data = opened(tmp_path, Decoding(deep=True))
    assert data.scaling.levels == 65536
    assert np.array_equal(data.read(np.arange(4)).numpy()[:, 0], values)


def test_pictures_are_cut_where_the_words_say(tmp_path: Path) -> None:
    folder(tmp_path)
    data = opened(tmp_path, Decoding((4, 4), crop="random", resize=False))
    assert data.num_draws == 2
    draws = np.zeros((6, 2), np.uint32)
    assert torch.equal(data.read(ALL, draws), load_folder(tmp_path).images[:, :, :4, :4])
    assert not torch.equal(data.read(ALL, draws + np.uint32(2**32 - 1)), data.read(ALL, draws))


@pytest.mark.parametrize("skips", [False, True])
def test_pictures_of_several_sizes_are_refused_beforehand(tmp_path: Path, skips: bool) -> None:
    folder(tmp_path)
    Image.fromarray(picture(9, 11)).save(tmp_path / "4.png")
    with pytest.raises(ValueError, match=r"0\.png of 12x9 and 4\.png of 11x9 pixels: .*size"):
        opened(tmp_path, skip_corrupt=skips)


def test_pictures_of_another_size_or_colour_that_were_not_looked_at_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdiff.data.pictures.NUM_PROBED", 2)
    folder(tmp_path, grey=True)
    Image.fromarray(picture(9, 12)).save(tmp_path / "2.png")
    Image.fromarray(picture(9, 11)[..., 0]).save(tmp_path / "4.png")
    data = opened(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"image 2 of pictures, 2\.png: in colour"):
        data.read(ALL)
    with pytest.raises(UnreadableImageError, match=r"image 4 of pictures, 4\.png: 11x9 pixels"):
        data.read(ALL[3:])


@pytest.mark.parametrize("damage", ["text", "cut off", "gone"])
def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, damage: str) -> None:
    folder(tmp_path, size=(30, 30))
    data = opened(tmp_path)
    path = tmp_path / "3.png"
    contents = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"text" if damage == "text" else contents[: len(contents) // 2])
    assert len(data.read(ALL[:3])) == 3
    with pytest.raises(UnreadableImageError, match=r"image 3 of pictures, 3\.png: .*repair it, or give skip_corrupt"):
        data.read(ALL)


@pytest.mark.parametrize("classes", [0, 2])
def test_pictures_that_are_skipped_give_way_to_the_next_of_their_class(
    tmp_path: Path, classes: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path, classes=classes)
    labels = torch.tensor([0, 0, 0, 1, 1, 1]) if classes else None
    good = opened(tmp_path, labels=labels).read(ALL)
    names = [name.as_posix() for name in list_images(tmp_path)]
    for index in (2, 5):
        (tmp_path / names[index]).write_text("damaged")
    # The next, around the end; of the same class where there are classes.
    expected = [0, 1, 0, 3, 4, 3] if classes else [0, 1, 3, 3, 4, 0]
    with caplog.at_level(logging.WARNING, "fastdiff.data"):
        for order in (ALL, ALL[::-1].copy()):
            data = opened(tmp_path, labels=labels, skip_corrupt=True)
            assert torch.equal(data.read(order), good[[expected[index] for index in order]])
            assert data.skipped == {2: expected[2], 5: expected[5]}
    assert f"{names[2]} is skipped" in caplog.text


def test_pictures_without_another_that_can_be_read_are_not_skipped(tmp_path: Path) -> None:
    folder(tmp_path, classes=2)
    names = [name.as_posix() for name in list_images(tmp_path)]
    data = opened(tmp_path, labels=torch.tensor([0, 0, 0, 1, 1, 1]), skip_corrupt=True)
    for name in names[3:]:
        (tmp_path / name).write_text("damaged")
    with pytest.raises(UnreadableImageError, match="nor can the next 2 be read"):
        data.read(np.array([4]))


def test_pictures_are_described_by_names_sizes_and_contents(tmp_path: Path) -> None:
    folder(tmp_path / "a", classes=2)

    def digest(path: Path, decoding: Decoding | None = None, **options: Any) -> str:
        return str(opened(path, decoding, **options).describe(with_labels=True)["digest"])

    first = digest(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path / "b") == first
    assert digest(tmp_path / "b", workers=5, skip_corrupt=True) == first
    assert digest(tmp_path / "b", Decoding((9, 12))) != first
    assert digest(tmp_path / "b", labels=torch.zeros(6, dtype=torch.int64)) != first
    path = tmp_path / "b/c0/0.png"
    contents = bytearray(path.read_bytes())
    contents[-20] ^= 1
    path.write_bytes(contents)
    assert digest(tmp_path / "b") != first


def test_pictures_none_of_which_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"no image of pictures can be read; the first is a\.png"):
        opened(tmp_path)
