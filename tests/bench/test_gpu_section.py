"""bench/gpu_section.py: rows as they come, whatever a task does."""

import time

import gpu_records
import gpu_section
import pytest
import torch
from gpu_tasks import Context, Task


@pytest.fixture
def context(tmp_path):
    return Context("smoke", tmp_path / "records.jsonl", time.monotonic() + 60)


def passed():
    return {"gate": "passed"}


def gates(context):
    return {row["name"]: row["gate"] for row in gpu_records.rows_of(gpu_records.read(context.records), "smoke")}


def test_row_that_raises_costs_no_other(context):
    def fail():
        raise ZeroDivisionError("of no number")

    gpu_section.run(context, [Task("a", passed), Task("b", fail), Task("c", passed)])
    assert gates(context) == {"a": "passed", "b": "error", "c": "passed"}
    row = gpu_records.rows_of(gpu_records.read(context.records), "smoke")[1]
    assert row["reason"] == "ZeroDivisionError: of no number"
    assert "in fail" in row["trace"]


def test_rows_are_written_before_the_next_is_begun(context):
    def look():
        assert gates(context) == {"a": "passed"}
        assert gpu_records.begun_last(gpu_records.read(context.records), "smoke") == "b"
        return [{"name": "b1", **passed()}, {"name": "b2", **passed()}]

    gpu_section.run(context, [Task("a", passed), Task("b", look)])
    assert gates(context) == {"a": "passed", "b1": "passed", "b2": "passed"}


def test_row_that_takes_longer_than_is_left_is_not_begun(context):
    gpu_section.run(context, [Task("long", pytest.fail, seconds=1000), Task("short", passed)])
    assert gates(context) == {"long": "not run", "short": "passed"}


def test_gpu_that_answers_no_more_ends_the_section(context, monkeypatch):
    """No later row of this process could be right; those before it stay."""

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def break_it():
        monkeypatch.setattr(torch.cuda, "synchronize", lost)
        lost()

    with pytest.raises(gpu_section.DeviceLost, match="no more after 'b': CUDA error: an illegal memory access"):
        gpu_section.run(context, [Task("a", passed), Task("b", break_it), Task("c", passed)])
    assert gates(context) == {"a": "passed", "b": "error"}


def test_numbers_that_json_lacks_are_words(context):
    errors = {"fastdiff": float("inf"), "torch": (float("nan"), 1.5)}
    gpu_section.run(context, [Task("a", lambda: {"gate": "failed", "errors": errors})])
    (row,) = gpu_records.rows_of(gpu_records.read(context.records), "smoke")
    assert row["errors"] == {"fastdiff": "inf", "torch": ["nan", 1.5]}


def test_half_a_line_spoils_no_other(tmp_path):
    path = tmp_path / "records.jsonl"
    gpu_records.append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b": ')
    gpu_records.mend(path)
    gpu_records.append(path, {"c": 3})
    assert gpu_records.read(path) == [{"a": 1}, {"c": 3}]
