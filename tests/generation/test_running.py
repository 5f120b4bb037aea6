"""Tests of fastdiff.generation.running: whoever makes the parts, and however often they are killed, their bytes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastdiff.generation.generate import Request, generate
from fastdiff.generation.shards import Shard
from support.jobs import contents

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
