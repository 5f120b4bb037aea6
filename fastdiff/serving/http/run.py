"""A server that runs until it is told to stop, and then until what it has taken is done."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
import time
from types import FrameType

import uvicorn

from fastdiff.serving import Engine
from fastdiff.serving.http.app import create_app
from fastdiff.serving.http.logs import LOGGER
from fastdiff.serving.http.service import Service
from fastdiff.serving.http.settings import Settings

__all__ = ["Server", "run"]

# Connections that the system holds until they are taken.
_SWITCH_SECONDS = 0.0005
_BACKLOG = 2048
# Descriptors that are not connections: files, the loop's own, the listening socket.
_OWN_DESCRIPTORS = 64
# After what was taken is done: for results that are not fetched yet, and then for answers on their way to slow clients.
_LAST_SECONDS = 5


class Server(uvicorn.Server):
    """uvicorn without its clock, which ticks ten times a second, and with another end.

    The first SIGTERM or SIGINT makes it drain: /ready says 503, new requests are refused, and what was taken is done,
    within `drain_seconds`. A second one ends that at once.

    Args:
        config: Of uvicorn.
        service: What is drained.
        drain_seconds: How long what was taken may still run.

    Attributes:
        was_drained: Whether all that was taken was done; None before the end.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self.service, self.drain_seconds = service, drain_seconds
        self.was_drained: bool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = asyncio.Queue[None]()

    def stop(self) -> None:
        """What a signal does, from any thread."""
        if self._loop is None:
            self.should_exit = True
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._signals.put_nowait, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of a signal. It is not raised again at the end, as uvicorn does: a server that has drained ends with 0."""
        self.stop()

    async def main_loop(self) -> None:
        """Sleep until a signal comes, then drain."""
        self._loop = asyncio.get_running_loop()
        log = logging.getLogger(LOGGER)
        if not self.should_exit:
            await self._signals.get()
        log.info("draining", extra={"running": len(self.service.kept.running())})
        draining = asyncio.ensure_future(self._drain())
        again = asyncio.ensure_future(self._signals.get())
        await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        left = len(self.service.kept.running())
        # A second signal may have come while there was nothing but results to be fetched.
        self.was_drained = (draining.done() and draining.result()) or not left
        log.info("drained" if self.was_drained else "stopped before all was done", extra={"running": left})
        # Cancels what is left, so that those who wait are told before the connections close.
        await self.service.stop()
        draining.cancel()

    async def _drain(self) -> bool:
        is_done = await self.service.drain(self.drain_seconds)
        end = time.monotonic() + _LAST_SECONDS
        while is_done and self.service.kept.unfetched() and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return is_done


def run(
    engine: Engine, settings: Settings, *, host: str = "127.0.0.1", port: int = 8000, drain_seconds: float = 30.0
) -> bool:
    """Serve until a signal comes, and drain. The engine is started, and closed at the end.

    Args:
        engine: Not yet started.
        settings: What bounds the server.
        host: Address to listen at.
        port: Port to listen at; 0 for any that is free, which the log says.
        drain_seconds: How long what was taken may still run after the signal.

    Returns:
        Whether all that was taken was done.

    Raises:
        RuntimeError: the address cannot be listened at.
    """
    app = create_app(engine, settings)
    # The engine's thread gives Python's lock back at each evaluation, and would wait this long for it.
    sys.setswitchinterval(_SWITCH_SECONDS)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OWN_DESCRIPTORS
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        limit_concurrency=max(_OWN_DESCRIPTORS, most),
        timeout_graceful_shutdown=_LAST_SECONDS,
        lifespan="on",
    )
    server = Server(config, app.state.service, drain_seconds)
    with _listening(host, port) as listener:
        where = listener.getsockname()
        name = f"[{where[0]}]" if ":" in where[0] else where[0]
        logging.getLogger(LOGGER).info("listening", extra={"url": f"http://{name}:{where[1]}/"})
        server.run([listener])
    return bool(server.was_drained)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        # Python's own sentence repeats the address.
        why = (error.strerror or str(error)).partition(" (")[0]
        raise RuntimeError(f"cannot listen at {host}, port {port}: {why}: take another") from error
    # Connections have it from here. asyncio sets it for sockets whose protocol is given alone, and without it an
    # answer's body waits 40 ms for the client to acknowledge its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
