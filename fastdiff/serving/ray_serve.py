"""The server on Ray Serve: an engine in each replica, and one front that speaks HTTP.

The front is the application of `fastdiff serve` over an engine that hands requests on. So ids, events and cancellation
work however many replicas there are, and a request that a lost replica had is given to another: the images are the
same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from fastdiff.engine.native import Precision
from fastdiff.pipeline import Pipeline
from fastdiff.process.checks import NotFinite, whole_number
from fastdiff.serving.answers import Closed, Full, SampleFuture, Stats, TookTooLong
from fastdiff.serving.engine import Engine
from fastdiff.serving.http.jobs import Job
from fastdiff.serving.job import Event
from fastdiff.serving.request import Limits, Request, work_of

if TYPE_CHECKING:
    from fastdiff.serving.http.settings import Settings

__all__ = ["RemoteEngine", "Replica", "deployment"]

ENGINES = "engines"
# Replicas that a request may lose before it fails.
_ATTEMPTS = 3
# Seconds between two words of mere progress, which go from process to process.
_BETWEEN = 0.05
# Of what the replicas count, which the front does not.
_SUMMED = ("batches", "evaluations", "seconds_network", "seconds_other")

logger = logging.getLogger("fastdiff.serving")


def deployment(
    model: str | Path,
    *,
    replicas: int | tuple[int, int] = 1,
    capacity: int = 16,
    precision: Precision | None = None,
    device: str = "cpu",
    weights: str | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_queued: int = 1024,
    max_wait: float | None = None,
    max_steps: int = 1000,
    max_num: int = 64,
    settings: Settings | None = None,
) -> Any:
    """An application for `ray.serve.run`: the routes and the page of `fastdiff serve`, over engines in replicas.

    Args:
        model: A model folder that every machine sees, or an id of the Hugging Face hub.
        replicas: How many, or the least and the most: there are more the more requests wait or run for each, from
            `capacity` on.
        capacity: Images that a replica evaluates at a time.
        precision: See `fastdiff.serving.Engine`.
        device: Of a replica's network.
        weights: See `Pipeline.from_pretrained`.
        num_cpus: Of a replica, which has as many threads.
        num_gpus: Of a replica.
        max_queued: Images that may wait or run, in all replicas.
        max_wait: See `fastdiff.serving.Engine`.
        max_steps: See `fastdiff.serving.Engine`.
        max_num: See `fastdiff.serving.Engine`.
        settings: What bounds the front.

    Raises:
        ValueError: numbers out of range.
        RuntimeError: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise RuntimeError(f'Ray Serve cannot be imported ({error}): pip install "fastdiff-ddpm[ray,serve]"') from error
    least, most = replicas if isinstance(replicas, tuple) else (replicas, replicas)
    least = whole_number("replicas", least, low=1)
    most = whole_number("replicas", most, low=least)
    place = {"device": device, "weights": weights}
    path = str(model)
    options = {"capacity": capacity, "precision": precision, "max_queued": max_queued, "max_wait": max_wait}
    options |= {"max_steps": max_steps, "max_num": max_num}
    scale: dict[str, Any] = {"num_replicas": least}
    if least < most:
        numbers = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": capacity}
        scale = {"autoscaling_config": numbers}
    engines = serve.deployment(
        name=ENGINES,
        max_ongoing_requests=max_queued,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        **scale,
    )(Replica)

    def front() -> Any:
        from ray import serve

        from fastdiff.serving.http.app import create_app
        from fastdiff.serving.http.settings import Settings

        handle = serve.get_deployment_handle(ENGINES, app_name=serve.get_replica_context().app_name)
        remote = RemoteEngine(
            handle.options(stream=True),
            Pipeline.from_pretrained(path, weights=weights),
            capacity,
            Limits(min(max_num, max_queued), max_steps),
            max_queued,
        )
        # It has the engine's methods, and is none: it has no network to step.
        return create_app(remote, settings or Settings(name=Path(path).name))  # type: ignore[arg-type]

    ingress = serve.deployment(name="front", max_ongoing_requests=max_queued + 1000)(serve.ingress(front)())
    return ingress.bind(engines.bind(path, place, options, max(1, int(num_cpus))))


@dataclass(frozen=True)
class _Outcome:
    """How a request ended in a replica.

    Attributes:
        replica: Which it was.
        stats: Its numbers by then.
        images: What came out; None where something went wrong.
        error: What did.
    """

    replica: str
    stats: Stats
    images: Tensor | None = None
    error: Exception | None = None


class Replica:
    """An engine in an actor.

    Args:
        model: See `deployment`.
        place: Of `Pipeline.from_pretrained`.
        options: Of `fastdiff.serving.Engine`.
        threads: Of the CPU.
    """

    def __init__(self, model: str, place: dict[str, Any], options: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.id = uuid.uuid4().hex
        self.engine = Engine(Pipeline.from_pretrained(model, **place), **options).start()

    async def sample(self, request: Request) -> AsyncIterator[Event | _Outcome]:
        """Have a request done, and tell of it; at the end comes the outcome. Who stops listening cancels it."""
        job = Job("", asyncio.get_running_loop())
        try:
            future = await asyncio.to_thread(self.engine.add, request, job.hear)
        except (ValueError, Full, Closed) as error:
            yield self._outcome(error=_portable(error))
            return
        job.follow(future, lambda _: None)
        flag, seen = job.read(), 0
        try:
            while not job.ended.is_set():
                await flag.wait()
                flag.clear()
                for preview in job.previews(seen):
                    seen = preview.version
                    yield preview.event
                yield Event(job.done, job.total)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BETWEEN):
                        await job.ended.wait()
            why = Closed("the replica's engine was closed") if future.cancelled() else future.exception()
            if why is None:
                yield self._outcome(images=future.result().cpu())
            else:
                logger.error("a request failed", exc_info=why)
                yield self._outcome(error=_portable(why))
        finally:
            job.leave(flag)
            future.cancel()

    def _outcome(self, images: Tensor | None = None, error: Exception | None = None) -> _Outcome:
        return _Outcome(self.id, self.engine.stats, images, error)


def _portable(error: BaseException) -> Exception:
    """An error that another process can read; it knows those that clients are told of."""
    if isinstance(error, ValueError | TookTooLong | NotFinite):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


class RemoteEngine:
    """What the front has in the place of an engine: it checks requests, and hands them on to the replicas.

    Args:
        handle: Of the replicas, which streams.
        pipeline: What requests are checked against.
        capacity: Of a replica.
        limits: Of a request.
        max_queued: Images that may wait or run.
    """

    def __init__(self, handle: Any, pipeline: Pipeline, capacity: int, limits: Limits, max_queued: int) -> None:
        self.pipeline, self.capacity, self.limits, self.max_queued = pipeline, capacity, limits, max_queued
        self._handle = handle
        self._changed = threading.Condition()
        self._running: dict[SampleFuture, Future[None]] = {}
        self._started: set[SampleFuture] = set()
        self._counts = dict.fromkeys(("added", "finished", "failed", "cancelled", "refused", "images"), 0)
        self._replicas: dict[str, Stats] = {}
        self._is_draining = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> Self:
        """Called in the event loop that the replicas are asked from."""
        self._loop = asyncio.get_running_loop()
        return self

    def add(self, request: Request, on_event: Callable[[Event], None] | None = None) -> SampleFuture:
        """See `Engine.add`."""
        assert self._loop is not None
        if self._is_draining:
            raise Closed("no more requests are taken: the engine is draining")
        work_of(self.pipeline, request, self.limits)
        future = SampleFuture(request, self._drop)
        with self._changed:
            held = sum(other.request.num for other in self._running)
            if held + request.num > self.max_queued:
                self._counts["refused"] += 1
                raise Full(
                    f"{held} of at most {self.max_queued} images are waited for, and {request.num} more were asked "
                    "for: try again in a while",
                    1.0,
                )
            self._counts["added"] += 1
            self._running[future] = asyncio.run_coroutine_threadsafe(self._follow(future, on_event), self._loop)
        return future

    @property
    def stats(self) -> Stats:
        """The replicas' numbers by the last request of each, and this engine's own of the requests."""
        with self._changed:
            running = sum(future.request.num for future in self._started)
            summed = {name: sum(getattr(stats, name) for stats in self._replicas.values()) for name in _SUMMED}
            recent = [fill for stats in self._replicas.values() for fill in stats.recent_fill]
            return Stats(
                queued_images=sum(future.request.num for future in self._running) - running,
                running_images=running,
                requests=len(self._running),
                **self._counts,
                **summed,
                fill=summed["evaluations"] / (summed["batches"] * self.capacity) if summed["batches"] else 0.0,
                recent_fill=tuple(recent[-256:]),
            )

    def drain(self, timeout: float | None = None) -> bool:
        """See `Engine.drain`."""
        self._is_draining = True
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def close(self) -> None:
        """Cancel what there is."""
        self._is_draining = True
        with self._changed:
            left = list(self._running)
        for future in left:
            future.cancel()

    async def _follow(self, future: SampleFuture, on_event: Callable[[Event], None] | None) -> None:
        found: Tensor | Exception
        try:
            found = await self._images(future, on_event)
        except Exception as error:
            found = error
        finally:
            with self._changed:
                self._started.discard(future)
                del self._running[future]
                self._changed.notify_all()
        with self._changed:
            self._counts["failed" if isinstance(found, Exception) else "finished"] += 1
            self._counts["images"] += 0 if isinstance(found, Exception) else future.request.num
        # It may have been cancelled in this moment.
        with contextlib.suppress(InvalidStateError):
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

    async def _images(self, future: SampleFuture, on_event: Callable[[Event], None] | None) -> Tensor:
        """What a replica made of a request, or another where that was lost; raises what went wrong in it."""
        from ray.exceptions import RayError

        for attempt in range(_ATTEMPTS):
            stream = self._handle.sample.remote(future.request)
            try:
                async for told in stream:
                    if isinstance(told, _Outcome):
                        with self._changed:
                            self._replicas[told.replica] = told.stats
                        if told.images is None:
                            assert told.error is not None
                            raise told.error
                        return told.images
                    with self._changed:
                        self._started.add(future)
                    if on_event is not None:
                        on_event(told)
            except asyncio.CancelledError:
                stream.cancel()
                raise
            except RayError as error:
                logger.warning("a replica was lost with a request: %s", error)
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise RuntimeError("the replicas ended without a word of the request")

    def _drop(self, future: SampleFuture) -> None:
        with self._changed:
            task = self._running.get(future)
            self._counts["cancelled"] += task is not None
        if task is not None:
            task.cancel()
