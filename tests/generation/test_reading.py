"""Tests of fastdiff.generation.reading: what was generated is read again, batch by batch."""

import json

import numpy as np
import pytest

from fastdiff.generation import formats
from fastdiff.generation.generate import Request, Samples, gather, generate
from fastdiff.generation.reading import is_stored, stored_images
from fastdiff.generation.shards import Shard

REQUEST = Request(11, steps=2, seed=5, part_size=4)


def read(path, size=3):
    images = stored_images(path)
    batches = list(images.batches(size))
    assert max(map(len, batches)) <= size
    pixels = np.concatenate(batches)
    assert (len(pixels), *pixels.shape[1:]) == (images.num, *images.shape)
    return pixels


@pytest.mark.parametrize("kind", formats.SUFFIXES)
def test_a_job_is_read_whatever_its_format(pipe, tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    request = Request(11, steps=2, seed=5, part_size=4, format=kind)
    generate(pipe, tmp_path, request, shard=Shard())
    np.testing.assert_array_equal(read(tmp_path), Samples.of(pipe, request).images(range(11)))
    about = stored_images(tmp_path).about
    assert (about["seed"], about["sampler"]) == (5, "ddim")


def test_a_gathered_parquet_is_read(pipe, tmp_path):
    pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    folder = generate(pipe, tmp_path / "job", REQUEST, shard=Shard())
    gather(folder, tmp_path / "all.parquet")
    np.testing.assert_array_equal(read(tmp_path / "all.parquet"), read(tmp_path / "job"))


def test_what_cannot_be_read_says_why(pipe, tmp_path):
    generate(pipe, tmp_path / "half", REQUEST, shard=Shard(0, 2))
    with pytest.raises(ValueError, match="2 of 3 parts: generate the others first"):
        stored_images(tmp_path / "half")
    generate(pipe, tmp_path / "half", REQUEST, shard=Shard())
    file = tmp_path / "half" / "parts" / "part-000001.npz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"part-000001\.npz: its checksum is another; generate it again"):
        read(tmp_path / "half")
    manifest = tmp_path / "half" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"kind": "score"}))
    with pytest.raises(ValueError, match="holds scores, and no images"):
        stored_images(tmp_path / "half")


def test_a_parquet_of_something_else_is_refused(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    import pyarrow.parquet

    (tmp_path / "text.parquet").write_text("nothing")
    with pytest.raises(ValueError, match="is no Parquet file"):
        stored_images(tmp_path / "text.parquet")
    pyarrow.parquet.write_table(arrow.table({"id": [1, 2]}), tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match="has no column 'image', but id"):
        stored_images(tmp_path / "ids.parquet")


def test_other_sources_are_left_to_others(tmp_path):
    assert not is_stored(tmp_path)
    assert not is_stored(tmp_path / "x.npz")
    assert is_stored("x.parquet")
