"""Tests of fastdiff.serving.http.run: a server as a process, which drains on SIGTERM and sleeps while it is idle."""

import signal
import threading
import time

import httpx
import psutil
import pytest

from fastdiff.serving.http.settings import Settings
from support.command_line import small_model
from support.servers import KEY, Held, Process, engine, served

ASKED = {"num": 4, "steps": 8, "sampler": "ddpm"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("serving") / "tiny", size=8, channels=1)


def slept(process, seconds):
    """Whether a process did nothing for so long."""
    before, switches = process.cpu_times(), process.num_ctx_switches().voluntary
    time.sleep(seconds)
    after = process.cpu_times()
    # The clock of a process counts in hundredths of a second.
    is_still = (after.user + after.system) - (before.user + before.system) <= 0.01
    return is_still and process.num_ctx_switches().voluntary - switches < 5


def test_a_process_serves_sleeps_and_drains(model):
    with Process(model, "--capacity", "4") as server:
        assert httpx.get(f"{server.url}v1/info", trust_env=False).status_code == 401
        info = server.client.get("v1/info").json()
        assert (info["model"], info["capacity"], info["limits"]["num"]) == ("tiny", 4, 64)
        assert server.client.post("v1/images", json=ASKED).status_code == 200
        process = psutil.Process(server.process.pid)
        # On a busy machine what the request left to do may take a while.
        assert any(slept(process, 1.5) for _ in range(5))
        ids = [server.client.post("v1/images?wait=0", json=ASKED).json()["id"] for _ in range(8)]
        with server.client.stream("GET", f"v1/requests/{ids[-1]}/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert "event: done" in list(lines)
        # The others were done before, and are there to be fetched for a while.
        assert all(server.client.get(f"v1/requests/{id}").status_code == 200 for id in ids)
        assert server.end() == 0
    messages = [entry["message"] for entry in server.log]
    assert messages.index("draining") < messages.index("drained")
    assert KEY not in messages


def test_a_second_signal_ends_at_once_and_says_so(model):
    with Process(model, "--max-queued", "4000") as server:
        for _ in range(60):
            server.client.post("v1/images?wait=0", json={**ASKED, "num": 64})
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 1
    assert any(entry["message"] == "stopped before all was done" and entry["running"] for entry in server.log)
    assert server.log[-1]["message"].startswith("error: the server stopped before all that it had taken was done")


def test_while_it_drains_it_is_not_ready_and_takes_nothing():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        asked = {"num": 1, "steps": 3, "labels": [0]}
        id = client.post("/v1/images?wait=0", json=asked).json()["id"]
        real, held = of.drain, threading.Event()
        of.drain = lambda seconds=None: held.wait(20) and real(seconds)
        server.server.stop()
        end = time.monotonic() + 10
        while client.get("/ready").status_code != 503:
            assert time.monotonic() < end
        assert client.get("/health").status_code == 200
        response = client.post("/v1/images", json=asked)
        assert response.status_code == 503
        assert response.json()["detail"] == "the server stops and takes no new requests"
        assert response.headers["Retry-After"] == "5"
        while of.step():
            pass
        assert client.get(f"/v1/requests/{id}").status_code == 200
        held.set()
        server.thread.join(10)
        assert server.server.was_drained


def test_a_second_signal_does_not_wait_for_results_to_be_fetched():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        client.post("/v1/images?wait=0", json={"num": 1, "steps": 3, "labels": [0]})
        while of.step():
            pass
        began = time.monotonic()
        server.server.stop()
        server.server.stop()
        server.thread.join(10)
        assert time.monotonic() - began < 4
        assert server.server.was_drained


def test_a_drain_that_takes_too_long_is_cut():
    of = engine(Held)
    with served(of, Settings(), drain_seconds=0.05) as server, server.client() as client:
        client.post("/v1/images?wait=0", json={"num": 1, "steps": 3, "labels": [0]})
        of.drain = lambda seconds=None: time.sleep(seconds) or False
        server.server.stop()
        server.thread.join(10)
        assert server.server.was_drained is False
        assert of.stats.cancelled == 1
