"""What the routes do, without FastAPI: take requests, watch them, and give their images in the form that is wanted."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive
from torch import Tensor

from fastdiff import samplers
from fastdiff.sampling.tables import default_steps, table_of
from fastdiff.serving import Closed, Engine, Full, SampleFuture
from fastdiff.serving.http import pictures
from fastdiff.serving.http.bodies import gone
from fastdiff.serving.http.failures import Refusal, refused, told
from fastdiff.serving.http.jobs import Job, Kept, Taken
from fastdiff.serving.http.logs import LOGGER
from fastdiff.serving.http.metrics import Metrics
from fastdiff.serving.http.reading import as_request, described, numbers_of
from fastdiff.serving.http.schemas import ImagesRequest, parsed
from fastdiff.serving.http.settings import Settings
from fastdiff.version import __version__

__all__ = ["Service"]

_T = TypeVar("_T")

# Bodies up to this size are parsed where they come; larger ones hold images, and would hold the event loop up.
_SMALL_BODY = 4096
# What is said to be the limit of an engine without one.
_STEPS = 1000
# Pictures are decoded and encoded in threads beside the engine's.
_THREADS = 2


class Service:
    """A server's state and what it can do, in one event loop.

    Args:
        engine: Not yet started; it is started by `open` and closed by `close`.
        settings: What bounds the server.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.log = logging.getLogger(LOGGER)
        self.metrics = Metrics(lambda: engine.stats)
        self.info = _info(engine, settings)
        self.is_draining = self.is_closing = False
        self._samplers = frozenset(sampler["name"] for sampler in self.info["samplers"])

    async def open(self) -> None:
        """Start the engine; called in the event loop that everything else is called in."""
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_THREADS, "fastdiff-http")
        settings = self.settings
        self.kept = Kept(self._loop, settings.keep_seconds, settings.keep_results, settings.keep_bytes)
        self.engine.start()

    async def drain(self, seconds: float | None) -> bool:
        """Take no new requests, and wait until those that were taken are done. Returns whether they are, in time."""
        self.is_draining = True
        return await asyncio.to_thread(self.engine.drain, seconds)

    async def stop(self) -> None:
        """Cancel what is left, tell who waits, and end the engine's thread. Answers on their way are still given."""
        self.is_draining = self.is_closing = True
        running = self.kept.running()
        await asyncio.to_thread(self.engine.close)
        for job in running:
            await job.ended.wait()

    async def close(self) -> None:
        """Stop, once the last answer has gone out."""
        await self.stop()
        self.kept.close()
        self._pool.shutdown(wait=False)

    async def aside(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function in a thread, away from the event loop and from the engine."""
        return await self._loop.run_in_executor(self._pool, functools.partial(function, *arguments))

    async def take(self, body: bytes, id: str, *, pictures_only: bool) -> Job:
        """Hand a request to the engine.

        Args:
            body: As it came.
            id: Of the request, not in use.
            pictures_only: Whether the answer holds PNGs, which not every number of channels has.

        Raises:
            Refusal: it was not taken.
        """
        job = Job(id, self._loop)
        try:
            if self.is_draining:
                raise refused(Closed())
            if pictures_only:
                self._check_channels()
            self.kept.add(job)
        except Taken as error:
            self.metrics.refused("invalid")
            raise Refusal(409, str(error), "invalid") from error
        except Refusal as refusal:
            self.metrics.refused(refusal.outcome)
            raise
        try:
            asked = parsed(body) if len(body) <= _SMALL_BODY else await self.aside(parsed, body)
            job.follow(await self.aside(self._add, asked, job), self._ended)
        except (ValueError, Full, Closed) as error:
            found = refused(error)
            self.metrics.refused(found.outcome)
            raise found from error
        finally:
            if job.future is None:
                self.kept.drop(id)
                job.ended.set()
        return job

    async def done(self, job: Job, receive: Receive) -> None:
        """Wait until a job has ended; where its client goes first, it is cancelled.

        Raises:
            Refusal: it has no images.
        """
        leaving = asyncio.ensure_future(gone(receive))
        ending = asyncio.ensure_future(job.ended.wait())
        try:
            await asyncio.wait((leaving, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            ending.cancel()
            if not job.ended.is_set():
                self.cancel(job)
            self.kept.drop(job.id)
        if not job.ended.is_set():
            await job.ended.wait()
            raise Refusal(499, "the client went away", "cancelled")
        self.check(job)

    def check(self, job: Job) -> None:
        """Raise Refusal where a job that has ended, and is asked for, has no images."""
        job.is_fetched = True
        refusal = told(job, self.is_closing)
        if refusal is not None:
            raise refusal

    def cancel(self, job: Job) -> bool:
        """Take a job out of the engine, wherever it is; False where it is done already."""
        return job.future is not None and job.future.cancel()

    def forget(self, job: Job) -> None:
        """Cancel a job, or forget what came out of it."""
        # It may be done in the engine, and its end not yet be told here.
        if job.ended.is_set() or not self.cancel(job):
            self.kept.drop(job.id)

    async def answer(self, job: Job, kind: str, is_float: bool) -> tuple[bytes, dict[str, str]]:
        """The images of a job that has them, and headers that belong to them.

        Args:
            job: Which.
            kind: The media type: "application/json", "image/png" or "application/x-npz".
            is_float: Of an archive, the engine's numbers rather than pixels.

        Raises:
            Refusal: images that no PNG can hold.
        """
        if kind != "application/x-npz":
            self._check_channels()
        return await self.aside(_encoded, job, kind, is_float)

    def stats(self) -> dict[str, Any]:
        """The engine's numbers."""
        return dataclasses.asdict(self.engine.stats)

    def _add(self, asked: ImagesRequest, job: Job) -> SampleFuture:
        engine = self.engine
        future = engine.add(as_request(asked, engine.pipeline, self._samplers), job.hear)
        job.about = described(asked, engine.pipeline)
        job.labels = numbers_of(asked, engine.pipeline)
        return future

    def _ended(self, job: Job) -> None:
        refusal = told(job, self.is_closing)
        self.metrics.ended(job, "done" if refusal is None else refusal.outcome)
        future = job.future
        assert future is not None
        images: Tensor | None = future.result() if refusal is None else None
        self.kept.end(job, 0 if images is None else images.nbytes)
        extra = {"request": job.id, "outcome": "done" if refusal is None else refusal.outcome}
        if refusal is not None and refusal.status == 500:
            self.log.error("a request failed", extra=extra, exc_info=future.exception())

    def _check_channels(self) -> None:
        channels = self.info["image_shape"][0]
        if not pictures.has_pictures(channels):
            raise Refusal(
                406, f"images of {channels} channels are no pictures: ask for application/x-npz by Accept", "invalid"
            )


def _encoded(job: Job, kind: str, is_float: bool) -> tuple[bytes, dict[str, str]]:
    assert job.future is not None
    images = job.future.result()
    if kind == "application/x-npz":
        found = pictures.as_float_npz(images) if is_float else pictures.as_npz(pictures.pixels(images), job.labels)
        return found, {}
    pixels = pictures.pixels(images)
    if kind == "image/png":
        if len(pixels) == 1:
            return pictures.png(pixels[0]), {}
        sheet, rows, columns = pictures.grid(pixels)
        return pictures.png(sheet), {"X-Fastdiff-Grid": f"{rows}x{columns}"}
    answer = {"id": job.id, **job.about, "images": [pictures.as_base64(image) for image in pixels]}
    return json.dumps({**answer, "seconds": job.seconds}).encode(), {}


def _info(engine: Engine, settings: Settings) -> dict[str, Any]:
    """What GET /v1/info says."""
    pipeline = engine.pipeline
    diffusion, classes = pipeline.diffusion, pipeline.classes
    steps = engine.limits.steps or max(_STEPS, diffusion.num_timesteps)
    limits = {"num": engine.limits.num, "steps": steps, "body_bytes": settings.max_body}
    offered = []
    for name in samplers.names():
        default = min(default_steps(name, diffusion), steps)
        try:
            table = table_of(name, diffusion, default)
        except ValueError:
            # It is not for this process, as without its options some are for none.
            continue
        if table.init_scale:
            about = {"name": name, "stochastic": table.is_stochastic, "previews": table.data_prediction}
            offered.append({**about, "default_steps": default})
    return {
        "version": __version__,
        "model": settings.name,
        "image_shape": list(pipeline.image_shape),
        "classes": None
        if classes.num is None
        else [{"number": number, "name": classes.name(number)} for number in range(classes.num)],
        "null_label": classes.null,
        "can_guide": _can_guide(engine),
        "can_condition": bool(pipeline.extra_channels),
        "samplers": offered,
        "default": {"sampler": "ddim", "steps": min(default_steps("ddim", diffusion), steps)},
        "limits": limits,
        "capacity": engine.capacity,
    }


def _can_guide(engine: Engine) -> bool:
    try:
        engine.pipeline.classes.null_of(None)
    except ValueError:
        return False
    return True
