"""The fastest of several ways is measured once per shape."""

import pytest
import torch

from fastdiff.engine.cuda import fastest as module
from fastdiff.engine.cuda.fastest import fastest


@pytest.fixture
def gpu(monkeypatch):
    """Ways that say how long they take."""
    timed = []

    def time(way):
        timed.append(way)
        return way.milliseconds

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "_time", time)
    monkeypatch.setattr(module, "_chosen", {})
    return timed


def way(milliseconds):
    def run():
        pass

    run.milliseconds = milliseconds
    return run


def test_fastest_is_chosen_once_per_key(gpu):
    ways = [way(3.0), way(1.0), way(2.0)]
    assert fastest("a", ways) is ways[1]
    others = [way(1.0), way(5.0), way(6.0)]
    # Kept: these are not measured.
    assert fastest("a", others) is others[1]
    assert fastest("b", others) is others[0]
    assert len(gpu) == 6


def test_single_way_needs_no_clock(gpu):
    only = way(1.0)
    assert fastest("c", [only]) is only
    assert not gpu


def test_first_way_is_taken_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ways = [way(3.0), way(1.0)]
    assert fastest("d", ways) is ways[0]
