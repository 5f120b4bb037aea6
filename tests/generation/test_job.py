"""Tests of fastdiff.generation.job."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastdiff.generation.job import MANIFEST, Job, checksum

JOB = Job("generate", {"seed": 3, "table": {"rows": [0.1, 0.2]}}, 10, 4, {"fastdiff": "0"})


def test_parts_cover_each_id_once():
    assert len(JOB) == 3
    assert [number for part in JOB.parts() for number in part.ids] == list(range(10))
    assert [part.num for part in JOB.parts()] == [4, 4, 2]
    assert JOB.part(2).name == "part-000002"


def test_a_job_goes_on_in_its_folder(tmp_path):
    JOB.begin(tmp_path)
    assert Job.read(tmp_path) == JOB
    # Versions are for people: another one does not make another job.
    later = dataclasses.replace(JOB, versions={"fastdiff": "1"})
    later.begin(tmp_path)
    assert Job.read(tmp_path) == JOB


def test_a_job_may_grow_and_not_shrink(tmp_path):
    JOB.begin(tmp_path)
    dataclasses.replace(JOB, num=20).begin(tmp_path)
    assert Job.read(tmp_path).num == 20
    with pytest.raises(ValueError, match="is of 20 images"):
        JOB.begin(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"about": {"seed": 4, "table": {"rows": [0.1, 0.2]}}}, "seed: 3 in the folder, 4 now"),
        ({"about": {"seed": 3, "table": {"rows": list(range(100))}}}, "table is another"),
        ({"about": {"seed": 3}}, "table"),
        ({"part_size": 5}, "part_size: 4 in the folder, 5 now"),
        ({"kind": "score"}, "kind"),
    ],
)
def test_two_jobs_are_not_mixed(tmp_path, change, said):
    JOB.begin(tmp_path)
    with pytest.raises(ValueError, match="is of another job") as error:
        dataclasses.replace(JOB, **change).begin(tmp_path)
    assert said in str(error.value)
    assert Job.read(tmp_path) == JOB


def test_of_two_jobs_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    both, write = threading.Barrier(2), Job._write

    def waits(self, path, *, exclusive=False):
        # Both have found the folder empty.
        both.wait(30)
        write(self, path, exclusive=exclusive)

    monkeypatch.setattr(Job, "_write", waits)
    jobs = [JOB, dataclasses.replace(JOB, about={"seed": 4, "table": {}})]

    def begin(job):
        try:
            job.begin(tmp_path)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(begin, jobs))
    assert sorted(text is None for text in said) == [False, True]
    refused = next(text for text in said if text is not None)
    assert "is of another job" in refused
    assert Job.read(tmp_path) == jobs[said.index(None)]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"'holiday\.jpg' and no manifest"):
        JOB.begin(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "not written by fastdiff"),
        (json.dumps({"format": "fastdiff-job", "format_version": 9}), "format version 9"),
        (json.dumps({"format": "fastdiff-job", "format_version": 1, "kind": "generate"}), "damaged"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, text, said):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=said):
        Job.read(tmp_path)


def test_a_folder_without_a_manifest_is_no_job(tmp_path):
    with pytest.raises(ValueError, match="is no job's folder"):
        Job.read(tmp_path)


def test_checksum_of_a_folder_knows_names_and_bytes(tmp_path):
    for name, files in {"a": {"x": b"1", "y": b"2"}, "b": {"x": b"1", "z": b"2"}, "c": {"x": b"1", "y": b"3"}}.items():
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / file).write_bytes(data)
    assert len({checksum(tmp_path / name) for name in "abc"}) == 3
