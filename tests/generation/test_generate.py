"""Tests of fastdiff.generation.generate, with fastdiff.generation.folder: whoever makes the parts, their bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastdiff.generation import formats
from fastdiff.generation.generate import Request, gather, generate, verify
from fastdiff.generation.job import checksum
from fastdiff.generation.shards import Shard

REQUEST = Request(23, steps=2, seed=5, part_size=5)
ALL = Shard()
# More of them by this variable: the proof in CI is short.
KILLS = int(os.environ.get("FASTDIFF_KILLS", "2"))

CHILD = """
import sys
import fastdiff as fd
from fastdiff.generation.generate import Request, generate
pipe = fd.Pipeline.from_pretrained(sys.argv[1])
print("ready", flush=True)
generate(pipe, sys.argv[2], Request(int(sys.argv[3]), steps=2, seed=5, part_size=5, format=sys.argv[4]))
"""


def contents(folder):
    """The files of the parts, without the records, which say who made them and when."""
    files = sorted(path for path in (folder / "parts").rglob("*") if path.is_file() and path.suffix != ".json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """The parts of one process."""
    folder = tmp_path_factory.mktemp("whole")
    generate(pipe, folder, REQUEST, shard=ALL)
    return contents(folder)


def test_images_are_those_of_sample(pipe, tmp_path):
    folder = generate(pipe, tmp_path, REQUEST, shard=ALL)
    path = gather(folder, tmp_path / "all.npz")
    expected = pipe.sample(23, steps=2, seed=5)
    pixels = ((expected.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["arr_0"], pixels)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_bytes_do_not_depend_on_the_shards(pipe, tmp_path, whole, count):
    for index in reversed(range(count)):
        generate(pipe, tmp_path, REQUEST, shard=Shard(index, count), batch_size=1 + index)
    assert contents(tmp_path) == whole


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


def test_a_job_that_grew_has_the_bytes_of_the_larger_one(pipe, tmp_path, whole):
    generate(pipe, tmp_path, dataclasses.replace(REQUEST, num=12), shard=ALL)
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 6}, "seed"), ({"steps": 3}, "table"), ({"part_size": 4}, "part_size"), ({"format": "zip"}, "format")],
)
def test_another_request_is_refused(pipe, tmp_path, change, said):
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    with pytest.raises(ValueError, match=said):
        generate(pipe, tmp_path, dataclasses.replace(REQUEST, **change), shard=ALL)


def test_another_model_is_refused(pipe, labelled, tmp_path):
    generate(pipe, tmp_path, REQUEST, shard=ALL)
    with pytest.raises(ValueError, match="weights is another"):
        generate(labelled, tmp_path, REQUEST, shard=ALL)


def test_labels_are_taken_in_turn_or_by_id(labelled, tmp_path):
    turns = {None: [0, 1, 2], ("2", 0): [2, 0]}
    for given, turn in turns.items():
        folder = generate(labelled, tmp_path / str(given), dataclasses.replace(REQUEST, labels=given), shard=ALL)
        with np.load(gather(folder, tmp_path / f"{given}.npz")) as archive:
            assert archive["arr_1"].tolist() == [turn[i % len(turn)] for i in range(23)]
    labels = np.random.default_rng(0).integers(0, 3, 40)
    folder = generate(labelled, tmp_path / "array", dataclasses.replace(REQUEST, labels=labels), shard=ALL)
    with np.load(gather(folder, tmp_path / "array.npz")) as archive:
        np.testing.assert_array_equal(archive["arr_1"], labels[:23])
        expected = labelled.sample(23, steps=2, seed=5, labels=labels[:23].tolist())
        pixels = ((expected.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(archive["arr_0"], pixels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(5), "do not cover the ids 0..22"),
        (np.full(23, 3), r"must be in 0..2, got 3..3"),
        (np.zeros(23), "whole numbers"),
        (["dog"], "labels"),
        ([], "at least one class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labelled, tmp_path, labels, said):
    with pytest.raises(ValueError, match=said):
        generate(labelled, tmp_path, dataclasses.replace(REQUEST, labels=labels), shard=ALL)


def test_labels_need_classes(pipe, tmp_path):
    with pytest.raises(ValueError, match="no classes"):
        generate(pipe, tmp_path, dataclasses.replace(REQUEST, labels=[0]), shard=ALL)


def test_an_unfinished_job_is_not_gathered(pipe, tmp_path):
    folder = generate(pipe, tmp_path, REQUEST, shard=Shard(0, 2))
    with pytest.raises(ValueError, match="has 3 of 5 parts"):
        gather(folder, tmp_path / "all.npz")


def test_verify_finds_a_changed_image(pipe, tmp_path):
    folder = generate(pipe, tmp_path, REQUEST, shard=ALL)
    assert verify(pipe, tmp_path, REQUEST, range(23)) == []
    part = folder.job.part(1)
    with np.load(folder.file(part)) as archive:
        images = archive["arr_0"].copy()
    images[2, 0, 0, 0] ^= 8
    np.savez(folder.file(part), images)
    with pytest.raises(ValueError, match="checksum"):
        verify(pipe, tmp_path, REQUEST, [7])
    said = json.loads(folder.record(part).read_text()) | {"sha256": checksum(folder.file(part))}
    folder.record(part).write_text(json.dumps(said))
    assert [(wrong.id, wrong.pixels) for wrong in verify(pipe, tmp_path, REQUEST, [6, 7])] == [(7, 1)]


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


def child(model, folder, kind="npz", num=23):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(model), str(folder), str(num), kind],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_kills_lose_no_id_and_double_none(model, pipe, tmp_path):
    random, request = np.random.default_rng(7), dataclasses.replace(REQUEST, num=400)
    generate(pipe, tmp_path / "whole", request, shard=ALL)
    killed = 0
    for attempt in range(KILLS):
        folder = tmp_path / str(attempt)
        process = child(model, folder, num=400)
        time.sleep(float(random.uniform(0.0, 0.3)))
        process.send_signal(signal.SIGKILL if random.random() < 0.7 else signal.SIGTERM)
        killed += process.wait() != 0
        generate(pipe, folder, request, shard=ALL)
        assert contents(folder) == contents(tmp_path / "whole")
        assert not list(folder.rglob("*.partial"))
    assert killed


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_two_processes_on_one_folder_share_it(model, pipe, tmp_path, kind):
    processes = [child(model, tmp_path / "both", kind, num=200) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    generate(pipe, tmp_path / "one", dataclasses.replace(REQUEST, num=200, format=kind), shard=ALL)
    assert contents(tmp_path / "both") == contents(tmp_path / "one")
