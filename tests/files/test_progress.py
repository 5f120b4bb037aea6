"""Progress of long work: a bar, lines in the log, or nothing."""

import logging

import pytest

from fastdiff.files import progress
from fastdiff.files.progress import duration, watched

LOGGER = logging.getLogger("fastdiff.tests")


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (125, "2:05"), (3725, "1:02:05")], ids=str)
def test_durations_are_those_of_people(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_that_of_the_parts_done_here(clock, capsys):
    with watched("training", 100, unit="steps", shows=True, done=40) as update:
        clock[0] += 20
        update(50, "loss 0.1")
        clock[0] += 100
        update(100, "")
    said = capsys.readouterr().out
    assert "training" in said
    assert "100 of 100 steps, took 2:00" in said


def test_the_log_has_a_line_now_and_then(clock, caplog, capsys):
    caplog.set_level(logging.INFO, logger="fastdiff")
    with watched("scoring", 8, unit="images", shows=False, logger=LOGGER) as update:
        for done in range(1, 9):
            clock[0] += 5
            update(done, "")
    assert [record.getMessage() for record in caplog.records] == [
        "scoring: 3 of 8 images, 25 s left",
        "scoring: 6 of 8 images, 10 s left",
        "scoring: 8 of 8 images, took 40 s",
    ]
    assert capsys.readouterr().out == ""


def test_nothing_is_said_unasked(clock, capsys):
    with watched("scoring", 2, unit="images", shows=False, logger=LOGGER) as update:
        update(2, "")
    assert capsys.readouterr() == ("", "")
