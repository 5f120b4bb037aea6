"""Tests of fastdiff.generation.formats."""

import json
import zipfile
from datetime import datetime

import numpy as np
import pytest

from fastdiff.generation import formats

KINDS = ("npz", "png", "zip", "parquet")


@pytest.fixture(autouse=True)
def _arrow(request):
    if "parquet" in request.node.name:
        pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")


def batch(first=0, num=5, channels=3, labels=True):
    random = np.random.default_rng(first)
    images = random.integers(0, 256, (num, 4, 6, channels), dtype=np.uint8)
    return range(first, first + num), images, random.integers(0, 7, num) if labels else None


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "none"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(tmp_path, kind, channels, labels):
    path = tmp_path / f"part{formats.SUFFIXES[kind]}"
    given = batch(1200, channels=channels, labels=labels)
    formats.write(path, kind, given)
    images, classes = formats.read(path, kind)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, given[1])
    if labels and kind != "png":
        np.testing.assert_array_equal(classes, given[2])
    else:
        assert classes is None


@pytest.mark.parametrize("kind", ["npz", "zip", "parquet"])
def test_bytes_do_not_depend_on_the_hour(tmp_path, kind, monkeypatch):
    given = batch()
    formats.write(tmp_path / "a", kind, given)
    monkeypatch.setattr("time.localtime", lambda *_: datetime(2040, 1, 2).timetuple())
    monkeypatch.setattr("time.time", lambda: 2.2e9)
    formats.write(tmp_path / "b", kind, given)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("suffix", [".npz", ".zip", ".parquet", ""])
def test_parts_put_together_are_the_whole(tmp_path, suffix):
    parts = [batch(0, 5), batch(5, 5), batch(10, 2)]
    images, labels = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    path = tmp_path / f"all{suffix}"
    formats.gather(path, parts, 12)
    kind = {v: k for k, v in formats.SUFFIXES.items()}[suffix]
    found, classes = formats.read(path, kind)
    np.testing.assert_array_equal(found, images)
    if suffix:
        np.testing.assert_array_equal(classes, labels)


def test_npz_is_what_numpy_reads(tmp_path):
    ids, images, labels = batch()
    formats.write(tmp_path / "a.npz", "npz", (ids, images, labels))
    with np.load(tmp_path / "a.npz") as archive:
        assert list(archive) == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(archive["arr_0"], images)


def test_zip_is_edms(tmp_path):
    formats.write(tmp_path / "a.zip", "zip", batch(1000))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[0] == "00001/img00001000.png"
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        said = json.loads(archive.read("dataset.json"))["labels"]
    assert said[0] == ["00001/img00001000.png", int(batch(1000)[2][0])]


def test_parquet_is_what_datasets_reads(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra [parquet] is not installed")
    formats.write(tmp_path / "a.parquet", "parquet", batch(7))
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column("id").to_pylist() == [7, 8, 9, 10, 11]
    about = json.loads(table.schema.metadata[b"huggingface"])
    assert about["info"]["features"]["image"] == {"_type": "Image"}
    assert table.column("image")[0].as_py()["bytes"].startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named(tmp_path, kind):
    path = tmp_path / f"part{formats.SUFFIXES[kind]}"
    formats.write(path, kind, batch())
    file = path / "000002.png" if kind == "png" else path
    file.write_bytes(file.read_bytes()[: 40 if kind == "png" else 200])
    with pytest.raises(ValueError, match="damaged"):
        formats.read(path, kind)


def test_formats_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'npz'"):
        formats.check_format("npy", 3)
    with pytest.raises(ValueError, match="these have 2: use npz"):
        formats.check_format("png", 2)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        formats.gather(tmp_path / "a.tar", [batch()], 5)


@pytest.mark.parametrize(("kind", "first"), [("png", 999_998), ("zip", 99_999_998), ("parquet", 999_998)])
def test_ids_that_outgrow_their_zeros_keep_their_order(tmp_path, kind, first):
    path = tmp_path / f"part{formats.SUFFIXES[kind]}"
    given = batch(first)
    formats.write(path, kind, given)
    images, classes = formats.read(path, kind)
    np.testing.assert_array_equal(images, given[1])
    if classes is not None:
        np.testing.assert_array_equal(classes, given[2])
