"""Tests of fastdiff.generation.running: whoever makes the parts, and however often they are killed, their bytes."""

import dataclasses
import os
import shutil
import time

import numpy as np
import pytest

from fastdiff.generation.generate import generate
from fastdiff.generation.shards import Shard
from support.jobs import REQUEST, contents, make, work
from support.processes import FORKS

ALL = Shard()
# More of them by this variable: the proof in CI is short.
KILLS = int(os.environ.get("FASTDIFF_KILLS", "2"))


def children(model, folder, shards, *, kind="generate", num=60, format="npz"):
    """Processes that have all loaded their models, and begin."""
    processes, pipes = [], []
    for shard in shards:
        here, there = FORKS.Pipe()
        processes.append(FORKS.Process(target=work, args=(there, kind, str(model), folder, shard, num, format)))
        processes[-1].start()
        pipes.append(here)
    for pipe in pipes:
        assert pipe.poll(120)
        pipe.recv()
    for pipe in pipes:
        pipe.send(None)
    return processes


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """The parts of one process."""
    folder = tmp_path_factory.mktemp("whole")
    generate(pipe, folder, REQUEST, shard=ALL)
    return contents(folder)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_bytes_do_not_depend_on_the_shards(pipe, tmp_path, whole, count):
    for index in reversed(range(count)):
        generate(pipe, tmp_path, REQUEST, shard=Shard(index, count), batch_size=1 + index)
    assert contents(tmp_path) == whole


@pytest.mark.timeout(60 + 10 * KILLS)
@pytest.mark.parametrize("kind", ["generate", "score"])
def test_kills_lose_no_id_and_double_none(model, pipe, tmp_path, kind):
    """Two shards at work, one of which is killed at any moment; the other ends, and the same command goes on."""
    random = np.random.default_rng(7)
    began = time.monotonic()
    whole = make(kind, pipe, tmp_path / "whole", ALL)
    seconds = time.monotonic() - began
    killed = 0
    for attempt in range(KILLS):
        folder = tmp_path / "job"
        processes = children(model, folder, [Shard(index, 2) for index in range(2)], kind=kind)
        # The first is killed for certain, a later one may have ended.
        time.sleep(float(random.uniform(0.0, seconds)) / 2 if attempt else 0.0)
        victim = processes[random.integers(2)]
        (victim.kill if random.random() < 0.7 else victim.terminate)()
        for process in processes:
            process.join(120)
        killed += victim.exitcode != 0
        assert {process.exitcode for process in processes if process is not victim} == {0}
        found = make(kind, pipe, folder, ALL)
        assert contents(folder) == contents(tmp_path / "whole")
        ids = [number for part in found.done() for number in part.ids]
        assert ids == list(range(whole.job.num))
        assert not list(folder.rglob("*.partial"))
        shutil.rmtree(folder)
    print(f"{killed} of {KILLS} were killed at work")
    assert killed


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_two_processes_on_one_folder_share_it(model, pipe, tmp_path, kind):
    processes = children(model, tmp_path / "both", [ALL, ALL], format=kind, num=200)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    generate(pipe, tmp_path / "one", dataclasses.replace(REQUEST, num=200, format=kind), shard=ALL)
    assert contents(tmp_path / "both") == contents(tmp_path / "one")
