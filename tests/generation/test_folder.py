"""Tests of fastdiff.generation.folder: what is there, what is damaged, and what a full disk leaves."""

import pytest

from fastdiff.generation import formats
from fastdiff.generation.generate import Request, generate
from fastdiff.generation.shards import Shard
from support.jobs import contents

REQUEST = Request(23, steps=2, seed=5, part_size=5)
ALL = Shard()


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """The parts of one process."""
    folder = tmp_path_factory.mktemp("whole")
    generate(pipe, folder, REQUEST, shard=ALL)
    return contents(folder)


def test_what_is_there_is_not_made_again(pipe, tmp_path, monkeypatch):
    folder = generate(pipe, tmp_path, REQUEST, shard=ALL)
    folder.file(folder.job.part(1)).unlink()
    made, sample = [], pipe.sample

    def counted(num, **options):
        made.extend(options["sample_ids"])
        return sample(num, **options)

    monkeypatch.setattr(pipe, "sample", counted)
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    assert made == [5, 6, 7, 8, 9]


def test_listed_parts_are_those_that_are_done(pipe, tmp_path):
    folder = generate(pipe, tmp_path, REQUEST, shard=Shard(1, 2))
    assert folder.listed() == folder.done() == [folder.job.part(1), folder.job.part(3)]
    folder.file(folder.job.part(1)).unlink()
    assert folder.listed() == [folder.job.part(3)]
    folder.record(folder.job.part(3)).unlink()
    assert folder.listed() == folder.done() == []


@pytest.mark.parametrize("harm", ["bit", "short", "gone", "record", "empty record"])
def test_a_damaged_part_is_made_again(pipe, tmp_path, whole, harm, caplog):
    folder = generate(pipe, tmp_path, REQUEST, shard=ALL)
    part = folder.job.part(2)
    file, record = folder.file(part), folder.record(part)
    if harm == "bit":
        data = bytearray(file.read_bytes())
        data[300] ^= 1
        file.write_bytes(data)
    elif harm == "short":
        file.write_bytes(file.read_bytes()[:-10])
    elif harm == "gone":
        file.unlink()
    elif harm == "record":
        record.write_text("{")
    else:
        record.write_text("")
    assert folder.fault(part) is not None
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    assert contents(tmp_path) == whole
    assert "is made again" in caplog.text


def test_a_full_disk_loses_nothing(pipe, tmp_path, whole, monkeypatch):
    write, calls = formats.write, []

    def full(path, kind, batch):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(path, kind, batch)

    monkeypatch.setattr(formats, "write", full)
    with pytest.raises(RuntimeError, match="No space left on device; 2 of 5 parts are done"):
        generate(pipe, tmp_path, REQUEST, shard=ALL)
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    assert contents(tmp_path) == whole
