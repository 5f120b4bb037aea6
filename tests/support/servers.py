"""Real servers on loopback, in threads of this process, and engines that stand still until they are told to step."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import uvicorn

from fastdiff.serving import Engine
from fastdiff.serving.http.app import create_app
from fastdiff.serving.http.run import Server
from fastdiff.serving.http.service import Service
from fastdiff.serving.http.settings import Settings
from support.serving import pipeline

JSON = {"Content-Type": "application/json"}
KEY = "a key of the process"


class Held(Engine):
    """An engine without a thread: nothing runs unless a test calls `step`."""

    def start(self):
        return self


class Failing:
    """In the place of an engine's evaluator: a network that raises."""

    self_condition = False

    def refresh(self):
        pass

    def __call__(self, chunks):
        raise RuntimeError("a layer of /home/someone/secret.py broke")


def engine(kind=Engine, *, classes=True, **options):
    return kind(pipeline(classes), **({"max_steps": 100, "max_num": 16} | options))


@dataclass
class Served:
    """A server that runs.

    Attributes:
        url: Where.
        server: uvicorn's.
        thread: That it runs in.
    """

    url: str
    server: Server
    thread: threading.Thread

    @property
    def service(self) -> Service:
        return self.server.service

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=60, **options)

    def in_loop(self, function):
        """Call a function in the server's event loop, and wait for what it returns."""

        async def call():
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.server._loop).result(10)


@contextlib.contextmanager
def served(
    of: Engine, settings: Settings | None = None, drain_seconds: float = 20.0, *, port: int = 0
) -> Iterator[Served]:
    """A server over an engine, on a free port or this one; stopped at the end, as by a signal."""
    app = create_app(of, settings)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, date_header=False, lifespan="on", timeout_graceful_shutdown=2
    )
    server = Server(config, app.state.service, drain_seconds)
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        found = Served(f"http://127.0.0.1:{listener.getsockname()[1]}", server, thread)
        try:
            with found.client() as client:
                assert client.get("/ready").status_code == 200
            yield found
        finally:
            server.stop()
            if isinstance(of, Held):
                server.stop()
            thread.join(30)
            assert not thread.is_alive()


class Process:
    """`fastdiff serve` as a process of its own."""

    def __init__(self, model, *options):
        command = [sys.executable, "-m", "fastdiff", "serve", str(model), "--port", "0", "--threads", "1", *options]
        environment = {**os.environ, "FASTDIFF_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["message"] == "listening":
                break
        self.url = self.log[-1]["url"]
        self.client = httpx.Client(
            base_url=self.url, trust_env=False, timeout=60, headers={"Authorization": f"Bearer {KEY}"}
        )
        while self.client.get("ready").status_code != 200:
            time.sleep(0.05)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            # The last may be the command's own.
            self.log.append(json.loads(line) if line.startswith("{") else {"message": line})

    def end(self):
        code = self.process.wait(30)
        self.reader.join(10)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
