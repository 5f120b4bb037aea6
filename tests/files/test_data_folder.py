"""Folders of images: order, labels, sizes, and what cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.files.data import (
    DataScaling,
    load_folder,
)
from support.pictures import picture, save


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
    with pytest.raises(ValueError, match=r"a\.png of 6x4 and c\.png of 4x6 pixels: size=64 would"):
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
