"""Requests on their way through the engine, as HTTP sees them: how far they are, who looks on, and what came out.

The engine's thread writes, the event loop reads. A reader gets the latest state and not each that was, so one who is
slow misses some and holds nothing up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.serving import Event

__all__ = ["Job", "Kept", "Preview", "Taken"]


class Taken(ValueError):
    """The id is another request's."""


@dataclass(eq=False)
class Preview:
    """A preview with its number among those of its request.

    Attributes:
        version: From 1 up.
        event: What the engine said.
        text: As it is sent, once someone has read it.
    """

    version: int
    event: Event
    text: bytes | None = None


class Job:
    """A request on its way.

    Attributes:
        id: As the client knows it.
        about: What the answer says of it: seed, sample_ids, sampler, steps; and the labels' numbers.
        created: When it came, by `time.perf_counter`.
        started: When its first evaluation was done; None before.
        seconds: What it took; None before its end.
        done: Evaluations done.
        total: Evaluations in all; 0 while nobody knows.
        is_fetched: Whether somebody was given what came out.
        future: The engine's.
    """

    def __init__(self, id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.id = id
        self.about: dict[str, Any] = {}
        self.labels: list[int] | None = None
        self.created = time.perf_counter()
        self.started: float | None = None
        self.seconds: float | None = None
        self.done = 0
        self.total = 0
        self.is_fetched = False
        self.future: Future[Tensor] | None = None
        self.ended = asyncio.Event()
        self._loop = loop
        self._previews: dict[int, Preview] = {}
        self._version = 0
        self._readers: set[asyncio.Event] = set()
        self._is_waking = False
        self._lock = threading.Lock()

    def hear(self, event: Event) -> None:
        """Take in what the engine says, in its thread."""
        if self.started is None:
            self.started = time.perf_counter()
        with self._lock:
            self.done, self.total = event.done, event.total
            if event.preview is not None and event.samples is not None:
                self._version += 1
                preview = Preview(self._version, event)
                self._previews.update(dict.fromkeys(event.samples, preview))
            if not self._readers or self._is_waking:
                return
            self._is_waking = True
        self._call(self._wake)

    def follow(self, future: Future[Tensor], then: Callable[[Job], None]) -> None:
        """Take the engine's future; `then` is called in the event loop when it is done."""
        self.future = future
        future.add_done_callback(lambda _: self._call(self._end, then))

    def read(self) -> asyncio.Event:
        """A flag that is set whenever there is something new; `leave` gives it back."""
        flag = asyncio.Event()
        flag.set()
        with self._lock:
            self._readers.add(flag)
        return flag

    def leave(self, flag: asyncio.Event) -> None:
        """The reader has gone."""
        with self._lock:
            self._readers.discard(flag)
            self._forget_previews()

    def previews(self, after: int) -> list[Preview]:
        """Those that are newer than a version and still the latest of some image, in their order."""
        with self._lock:
            found = {preview.version: preview for preview in self._previews.values() if preview.version > after}
        return [found[version] for version in sorted(found)]

    def _forget_previews(self) -> None:
        if self.ended.is_set() and not self._readers:
            self._previews.clear()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: the server has ended, and nobody waits.
            return

    def _wake(self) -> None:
        with self._lock:
            self._is_waking = False
            readers = list(self._readers)
        for flag in readers:
            flag.set()

    def _end(self, then: Callable[[Job], None]) -> None:
        self.seconds = time.perf_counter() - self.created
        self.ended.set()
        with self._lock:
            self._forget_previews()
        then(self)
        self._wake()


class Kept:
    """The requests that can be asked for by their ids.

    Those on their way are all here. Those that ended stay for some time, and go sooner, the oldest first, where they
    are too many or too large.

    Args:
        loop: In whose thread everything is called.
        seconds: How long.
        num: How many at most.
        num_bytes: Of images, in all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, num: int, num_bytes: int) -> None:
        self._loop, self.seconds, self._num, self._most = loop, seconds, num, num_bytes
        self._jobs: dict[str, Job] = {}
        # By the end of their time, with the bytes of each.
        self._ended: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Keep a job that begins.

        Raises:
            Taken: there is one of its id.
        """
        if job.id in self._jobs:
            raise Taken(f"the request id {job.id} is in use: take another, or none")
        self._jobs[job.id] = job

    def get(self, id: str) -> Job | None:
        """The job of this id, if there is one."""
        return self._jobs.get(id)

    def running(self) -> list[Job]:
        """Those that have not ended."""
        return [job for job in self._jobs.values() if not job.ended.is_set()]

    def unfetched(self) -> bool:
        """Whether something has come out that nobody was given yet."""
        return any(not job.is_fetched for job in self._jobs.values())

    def drop(self, id: str) -> None:
        """Forget a job."""
        self._jobs.pop(id, None)
        self.num_bytes -= self._ended.pop(id, (0.0, 0))[1]

    def end(self, job: Job, num_bytes: int) -> None:
        """A job has ended, with so many bytes: from now on its time runs."""
        if self._jobs.get(job.id) is not job:
            return
        self._ended[job.id] = (self._loop.time() + self.seconds, num_bytes)
        self.num_bytes += num_bytes
        while self._ended and (len(self._ended) > self._num or self.num_bytes > self._most):
            self.drop(next(iter(self._ended)))
        self._set_timer()

    def close(self) -> None:
        """Set no timer any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._timer is None and self._ended:
            self._timer = self._loop.call_at(next(iter(self._ended.values()))[0], self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._ended and next(iter(self._ended.values()))[0] <= now:
            self.drop(next(iter(self._ended)))
        self._set_timer()
