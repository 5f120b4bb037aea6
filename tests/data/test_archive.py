"""Pictures in a ZIP with EDM's dataset.json, and archives that are damaged or made to do harm."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdiff.data.archive import ZipFiles, labels_of_json, open_zip
from support.pictures import picture


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=0)
    return file.getvalue()


def archive(
    path: Path, num: int = 4, *, compression: int = zipfile.ZIP_STORED, labels: object = True
) -> list[np.ndarray]:
    """As EDM's dataset_tool.py writes it."""
    images = [picture(6, 6) for _ in range(num)]
    with zipfile.ZipFile(path, "w", compression) as file:
        names = [f"00000/img{index:08d}.png" for index in range(num)]
        for name, pixels in zip(names, images, strict=True):
            file.writestr(name, png(pixels))
        if labels is True:
            labels = {"labels": [[name, index % 3] for index, name in enumerate(names)][::-1]}
        if labels is not False:
            file.writestr("dataset.json", json.dumps(labels))
    return images


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_archive_gives_pictures_in_order_with_their_labels(tmp_path: Path, compression: int) -> None:
    images = archive(tmp_path / "a.zip", compression=compression)
    files, labels = open_zip(tmp_path / "a.zip")
    assert len(files) == 4
    for index, pixels in enumerate(images):
        assert np.array_equal(np.array(Image.open(files.open(index))), pixels)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 0]
    assert files.name(2) == "00000/img00000002.png"


@pytest.mark.parametrize("labels", [False, None, {"labels": None}], ids=str)
def test_archive_without_labels(tmp_path: Path, labels: object) -> None:
    archive(tmp_path / "a.zip", labels=labels)
    assert open_zip(tmp_path / "a.zip")[1] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"labels": [["00000/img00000000.png", 0]]}, "no label for 00000/img00000001"),
        ({"labels": [[f"00000/img0000000{index}.png", 0.5] for index in range(4)]}, "whole numbers from 0 up, got 0.5"),
        ({"labels": [[f"00000/img0000000{index}.png", -1] for index in range(4)]}, "whole numbers from 0 up, got -1"),
        ({"labels": [[f"00000/img0000000{index}.png", [0, 1]] for index in range(4)]}, "whole numbers"),
        ({"label": []}, "expected"),
        ([1, 2, 3], "expected"),
        (3, "expected"),
    ],
    ids=str,
)
def test_archive_says_what_is_wrong_with_its_labels(tmp_path: Path, labels: object, message: str) -> None:
    archive(tmp_path / "a.zip", labels=labels)
    with pytest.raises(ValueError, match=rf"a\.zip: dataset\.json: .*{message}"):
        open_zip(tmp_path / "a.zip")


def test_archive_labels_are_no_code() -> None:
    with pytest.raises(ValueError, match="expected"):
        labels_of_json("dataset.json", b"[" * 100_000, ["a"])


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "b/../../a.png", "..\\a.png", "C:/a.png"])
def test_archive_refuses_paths_that_leave_it(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(name, png(picture(4, 4)))
    with pytest.raises(ValueError, match="leaves the archive"):
        ZipFiles(tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_archive_refuses_encrypted_members(tmp_path: Path) -> None:
    archive(tmp_path / "a.zip")
    contents = bytearray((tmp_path / "a.zip").read_bytes())
    # The flags of the first entry of the directory.
    contents[contents.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(contents)
    with pytest.raises(ValueError, match=r"img00000000\.png is encrypted"):
        ZipFiles(tmp_path / "a.zip")


@pytest.mark.parametrize("kept", [0, 10, 200, -30])
def test_archive_that_is_cut_off_is_named(tmp_path: Path, kept: int) -> None:
    archive(tmp_path / "a.zip")
    contents = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(contents[:kept])
    with pytest.raises(ValueError, match=r"a\.zip: damaged"):
        ZipFiles(tmp_path / "a.zip")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_archive_with_a_damaged_member_names_it_when_it_is_read(tmp_path: Path, compression: int) -> None:
    archive(tmp_path / "a.zip", compression=compression)
    contents = bytearray((tmp_path / "a.zip").read_bytes())
    contents[contents.index(b"img00000000.png") + 80] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(contents)
    files = ZipFiles(tmp_path / "a.zip")
    files.open(1)
    with pytest.raises(ValueError, match=r"damaged in .*a\.zip"):
        files.open(0)


def test_archive_without_pictures(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.txt", "text")
    with pytest.raises(ValueError, match=r"no images in it; .* saw 1 other"):
        ZipFiles(tmp_path / "a.zip")


def test_archive_digest_follows_every_byte_of_its_pictures(tmp_path: Path) -> None:
    images = archive(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for index, pixels in enumerate(images):
            file.writestr(f"00000/img{index:08d}.png", png(pixels))
    assert ZipFiles(tmp_path / "a.zip").digest() == ZipFiles(tmp_path / "b.zip").digest()
    images[3][5, 5, 2] ^= 1
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        for index, pixels in enumerate(images):
            file.writestr(f"00000/img{index:08d}.png", png(pixels))
    assert ZipFiles(tmp_path / "a.zip").digest() != ZipFiles(tmp_path / "c.zip").digest()
