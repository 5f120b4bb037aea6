"""Tests of fastdiff.generation.ray_engine: a real Ray on this machine, one of whose workers is lost."""

import dataclasses
import functools
import os
import signal
import threading
import time

import psutil
import pytest

from fastdiff.generation.generate import Request, generate
from fastdiff.generation.ray_engine import run_by_ray
from fastdiff.generation.shards import Shard
from support import jobs
from support.jobs import contents

pytest.importorskip("ray.data", reason="the extra [ray] is not installed")

# More of them by this variable: the proof in CI is short.
KILLS = max(1, int(os.environ.get("FASTDIFF_KILLS", "2")) // 10)
REQUEST = Request(60 * KILLS, steps=2, seed=5, part_size=5)


def kill_workers(folder, num, found):
    """Kill so many of Ray's actors, each once there are more parts than when the one before was killed."""
    deadline, seen = time.monotonic() + 200 + 30 * num, 0
    while time.monotonic() < deadline and len(found) < num:
        time.sleep(0.02)
        there = len(list((folder / "parts").glob("*.npz")))
        if there <= seen:
            continue
        for process in psutil.Process().children(recursive=True):
            try:
                if "MapWorker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    found.append(process.pid)
                    seen = there
                    break
            except (psutil.Error, ProcessLookupError):
                continue


def test_a_lost_worker_loses_no_id_and_doubles_none(model, tmp_path):
    # Ray's workers do not find what tests share.
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    cloudpickle.register_pickle_by_value(jobs)
    work, folder = jobs.samples(model, REQUEST), tmp_path / "ray"
    killed: list[int] = []
    killer = threading.Thread(target=kill_workers, args=(folder, KILLS, killed), daemon=True)
    killer.start()
    told = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    load = functools.partial(jobs.samples, str(model), REQUEST)
    done = run_by_ray(work, load, folder, workers=2, progress=lambda *both: told.append(both))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert killed, "no worker of Ray's was found"
    assert len(done.done()) == len(done.job) == 12 * KILLS
    assert told[-1] == (REQUEST.num, REQUEST.num)
    generate(work.model, tmp_path / "one", REQUEST, shard=Shard())
    assert contents(folder) == contents(tmp_path / "one")
    # There is nothing left to do, and Ray is not started for it.
    began = time.monotonic()
    run_by_ray(work, load, folder, workers=2)
    assert time.monotonic() - began < 5


def test_another_job_is_refused_before_ray_starts(model, tmp_path):
    generate(jobs.samples(model, REQUEST).model, tmp_path, REQUEST, shard=Shard(0, 12 * KILLS))
    other = jobs.samples(model, dataclasses.replace(REQUEST, seed=6))
    with pytest.raises(ValueError, match="seed: 5 in the folder, 6 now"):
        run_by_ray(other, lambda: other, tmp_path)
