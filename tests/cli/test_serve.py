"""Tests of fastdiff.cli.serve; tests/serving/http/test_run.py runs it as a process."""

import socket

import pytest

from fastdiff.cli import serve as command
from fastdiff.serving.http import run as running
from support.command_line import fails, run, works


@pytest.fixture
def started(monkeypatch):
    """What a server would be run with."""
    found = {}

    def instead(engine, settings, **more):
        found.update(more, engine=engine, settings=settings)
        return found.get("is_done", True)

    monkeypatch.setattr(running, "run", instead)
    monkeypatch.setattr("fastdiff.serving.http.logs.write_json_lines", lambda: None)
    return found


def test_defaults_are_for_this_machine_alone(model, started):
    works("serve", model)
    assert (started["host"], started["port"], started["drain_seconds"]) == ("127.0.0.1", 8000, 30)
    assert (started["settings"].api_key, started["settings"].name) == (None, "colour")
    engine = started["engine"]
    assert (engine.capacity, engine.limits.num, engine.limits.steps) == (16, 64, 1000)
    assert engine.limits.pixels == 4 * 16 * 16


def test_options_reach_the_engine_and_the_server(model, started):
    options = [
        "--capacity",
        4,
        "--max-steps",
        20,
        "--max-num",
        3,
        "--max-queued",
        30,
        "--max-wait",
        2.5,
        "--max-body",
        2,
    ]
    options += ["--max-pixels", 256, "--keep-seconds", 9, "--drain-seconds", 4, "--port", 0, "--precision", "strict"]
    options += ["--memory", "low"]
    works("serve", model, *options)
    engine, settings = started["engine"], started["settings"]
    assert (engine.capacity, engine.max_queued, engine.max_wait) == (4, 30, 2.5)
    assert (engine.limits.num, engine.limits.steps, engine.limits.pixels) == (3, 20, 256)
    assert (settings.max_body, settings.keep_seconds) == (2 * 2**20, 9)
    assert (started["port"], started["drain_seconds"]) == (0, 4)
    assert engine.pipeline.memory == "low"


def test_the_key_is_read_from_the_environment(model, started, monkeypatch):
    monkeypatch.setenv("FASTDIFF_API_KEY", "of the environment")
    works("serve", model)
    assert started["settings"].api_key == "of the environment"


def test_an_open_address_without_a_key_is_warned_of(model, started):
    assert "warning: 0.0.0.0 can be reached" in run("serve", model, "--host", "0.0.0.0").stderr
    assert "warning" not in run("serve", model, "--host", "0.0.0.0", "--api-key", "a").stderr
    assert "warning" not in run("serve", model, "--host", "::1").stderr


def test_an_end_before_all_was_done_is_an_error(model, started):
    started["is_done"] = False
    assert "the server stopped before all that it had taken was done" in fails("serve", model)


def test_a_missing_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastdiff.serving.http.run", None)
    assert 'pip install "fastdiff-ddpm[serve]"' in fails("serve", model)


def test_a_port_in_use_is_named(model, monkeypatch):
    monkeypatch.setattr("fastdiff.serving.http.logs.write_json_lines", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert fails("serve", model, "--port", port) == (
            f"error: cannot listen at 127.0.0.1, port {port}: Address already in use: take another"
        )


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a", False)]
)
def test_loopback_is_known(host, is_loopback):
    assert command._is_loopback(host) == is_loopback
