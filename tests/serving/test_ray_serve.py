"""Tests of fastdiff.serving.ray_serve: the example on a real Ray here, and its front over a false replica."""

import asyncio
import runpy
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.files.images import to_uint8
from fastdiff.process.checks import NotFinite
from fastdiff.serving import Client, Closed, Full, Request, TookTooLong, ray_serve
from fastdiff.serving.ray_serve import RemoteEngine, Replica
from fastdiff.serving.request import Limits
from support.command_line import small_model
from support.servers import served

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "ray_serve.py"
OPTIONS = {"capacity": 4, "max_queued": 64, "max_steps": 100, "max_num": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("ray") / "tiny", size=8, channels=1, num_classes=3)


class Stream:
    """What a handle gives: an asynchronous generator that can be cancelled."""

    def __init__(self, told):
        self.told, self.is_cancelled = told, False

    def __aiter__(self):
        return self.told

    def cancel(self):
        self.is_cancelled = True


class Handle:
    """Of a replica in this process; `lose` streams break first."""

    def __init__(self, replica, lose=0):
        self.replica, self.left, self.streams, self.sample = replica, lose, [], self

    def remote(self, request):
        self.left -= 1
        self.streams.append(Stream(self.broken() if self.left >= 0 else self.replica.sample(request)))
        return self.streams[-1]

    async def broken(self):
        from ray.exceptions import ActorDiedError

        raise ActorDiedError
        yield


@pytest.fixture(scope="module")
def replica(model):
    made = Replica(str(model), {}, OPTIONS, 1)
    yield made
    made.engine.close()


def front(replica, **more):
    limits = Limits(OPTIONS["max_num"], OPTIONS["max_steps"])
    return RemoteEngine(Handle(replica, **more), replica.engine.pipeline, 4, limits, 8)


def uint8(images):
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def test_the_front_serves_as_an_engine_does(replica):
    pipe = replica.engine.pipeline
    with served(front(replica)) as server:
        client = Client(server.url)
        asked = {"num": 3, "steps": 4, "labels": [0, 1, 2], "seed": 5}
        assert np.array_equal(client.sample(**asked), uint8(pipe.sample(3, steps=4, labels=[0, 1, 2], seed=5)))
        *before, last = client.events(**asked)
        assert np.array_equal(last.images, client.sample(**asked))
        assert before
        with pytest.raises(ValueError, match=r"labels must be in 0..2, got 9"):
            client.sample(labels=[9])
        stats = client.stats()
        assert (stats["added"], stats["finished"], stats["images"]) == (3, 3, 9)
        assert stats["evaluations"] >= 36
        assert 0 < stats["fill"] <= 1


def test_a_request_that_a_replica_loses_is_another_ones(replica):
    with served(front(replica, lose=2)) as server:
        assert Client(server.url).sample(steps=2, labels=[0]).shape == (1, 8, 8, 1)
    with served(front(replica, lose=3)) as server, pytest.raises(RuntimeError, match="500: the network failed"):
        Client(server.url).sample(steps=2, labels=[0])


def test_the_front_bounds_and_cancels(replica):
    async def main():
        of = front(replica).start()
        futures = [of.add(Request(num=4, steps=8, labels=[0] * 4, sampler="ddpm")) for _ in range(2)]
        with pytest.raises(Full, match="8 of at most 8 images are waited for"):
            of.add(Request(labels=[0]))
        futures[0].cancel()
        await asyncio.wrap_future(futures[1])
        while of.stats.requests:
            await asyncio.sleep(0.01)
        assert of._handle.streams[0].is_cancelled or of._handle.streams[0].told.ag_frame is None
        stats = of.stats
        assert (stats.added, stats.finished, stats.cancelled, stats.refused) == (2, 1, 1, 1)
        assert of.drain(1)
        with pytest.raises(Closed):
            of.add(Request(labels=[0]))
        of.close()

    asyncio.run(main())
    end = time.monotonic() + 10
    while replica.engine.stats.requests:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("error", [ValueError("a"), TookTooLong("b"), NotFinite(1, 2), OSError("c")])
def test_errors_go_from_process_to_process(error):
    import pickle

    found = pickle.loads(pickle.dumps(ray_serve._portable(error)))
    assert str(error) in str(found)
    assert type(found) is (RuntimeError if isinstance(error, OSError) and type(error) is OSError else type(error))


def test_a_deadline_passes_in_a_replica(replica):
    async def main():
        of = front(replica).start()
        future = of.add(Request(steps=8, labels=[0], deadline=1e-6))
        with pytest.raises(TookTooLong, match="deadline"):
            await asyncio.wrap_future(future)
        assert of.stats.failed == 1

    asyncio.run(main())


def test_replicas_are_numbers():
    pytest.importorskip("ray.serve", reason="the extra [ray] is not installed")
    with pytest.raises(ValueError, match="replicas must be a whole number, at least 1, got 0"):
        fd.serving.deployment("model", replicas=0)
    with pytest.raises(ValueError, match="replicas must be a whole number, at least 3, got 2"):
        fd.serving.deployment("model", replicas=(3, 2))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match=r'pip install "fastdiff-ddpm\[ray,serve\]"'):
        fd.serving.deployment("model")


@pytest.mark.slow
def test_the_example_runs_with_two_replicas(model, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
    serve = pytest.importorskip("ray.serve", reason="the extra [ray] is not installed")
    monkeypatch.setenv("FASTDIFF_MODEL", str(model))
    monkeypatch.setenv("FASTDIFF_REPLICAS", "2")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    app = runpy.run_path(str(EXAMPLE))["app"]
    try:
        # Processors beside those of the replicas are for Ray's own actors; they are logical ones.
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app, name="fastdiff")
        states = serve.status().applications["fastdiff"].deployments["engines"].replica_states
        assert {str(getattr(state, "value", state)): count for state, count in states.items()} == {"RUNNING": 2}
        client, pipe = Client(f"http://127.0.0.1:{port}"), fd.Pipeline.from_pretrained(model)
        assert client.info()["model"] == "tiny"
        alone = uint8(pipe.sample(4, steps=5, labels=[0, 1, 2, 0]))
        found = {}

        def ask(number):
            found[number] = client.sample(num=4, steps=5, labels=[0, 1, 2, 0], sample_ids=[0, 1, 2, 3])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 12
        assert all(np.array_equal(images, alone) for images in found.values())
        *_, last = client.events(num=4, steps=5, labels=[0, 1, 2, 0])
        assert np.array_equal(last.images, alone)
        with pytest.raises(ValueError, match="unknown sampler"):
            client.sample(sampler="x", labels=[0])
    finally:
        serve.shutdown()
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)
