"""Tests of fastdiff.generation.folder: what is there, what is damaged, and what a full disk leaves."""

import shutil
import subprocess

import pytest

from fastdiff.generation import formats
from fastdiff.generation.generate import Request, generate
from fastdiff.generation.shards import Shard
from support.command_line import fails
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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("there is no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_disk_that_is_full_is_named_and_gone_on_from(pipe, small_disk, whole):
    with pytest.raises(RuntimeError, match=r"No space left on device; [123] of 5 parts are done, and the same command"):
        generate(pipe, small_disk / "job", REQUEST, shard=ALL)
    remount(small_disk, "size=1m")
    generate(pipe, small_disk / "job", REQUEST, shard=ALL)
    assert contents(small_disk / "job") == whole


def test_a_folder_that_may_be_read_alone_is_named(pipe, model, small_disk, whole):
    remount(small_disk, "size=1m")
    folder = small_disk / "job"
    generate(pipe, folder, REQUEST, shard=Shard(0, 2))
    remount(small_disk, "ro")
    with pytest.raises(RuntimeError, match="cannot be written to: Read-only file system; 3 of 5 parts are done"):
        generate(pipe, folder, REQUEST, shard=ALL)
    with pytest.raises(OSError, match="Read-only"):
        generate(pipe, small_disk / "another", REQUEST, shard=ALL)
    typed = ("--num", 23, "--steps", 2, "--seed", 5, "--part-size", 5)
    assert f"cannot write to {folder}: Read-only file system" in fails("generate", model, folder, *typed)
    remount(small_disk, "rw")
    generate(pipe, folder, REQUEST, shard=ALL)
    assert contents(folder) == whole
