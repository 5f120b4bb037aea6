"""A request as server-sent events: progress and previews while it runs, then the images or the error.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Scope, Send
from torch import Tensor

from fastdiff.serving.http.bodies import gone
from fastdiff.serving.http.failures import told
from fastdiff.serving.http.jobs import Job, Preview
from fastdiff.serving.http.pictures import as_base64, pixels
from fastdiff.serving.http.service import Service

__all__ = ["EventStream", "encoded_preview", "message"]

_COMMENT = b": still here\n\n"


def message(name: str, data: dict[str, Any]) -> bytes:
    """An event of this name, its data as one line of JSON."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def encoded_preview(preview: Preview) -> bytes:
    """A preview as it is sent; it is encoded once, for all readers."""
    if preview.text is None:
        event = preview.event
        assert event.samples is not None
        assert event.preview is not None
        preview.text = message(
            "preview",
            {
                "samples": [event.samples.start, event.samples.stop],
                "row": event.row,
                "t": event.t,
                "images": [as_base64(image) for image in pixels(event.preview)],
            },
        )
    return preview.text


class EventStream:
    """The answer that streams a job, an ASGI application.

    Args:
        service: Whose job it is.
        job: What is looked at.
    """

    def __init__(self, service: Service, job: Job) -> None:
        self.service, self.job = service, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the job has ended, the client has gone, or it has taken nothing for too long."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        stall = self.service.settings.stall_seconds
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for text in self._texts():
                async with asyncio.timeout(stall):
                    await send({"type": "http.response.body", "body": text, "more_body": True})
            async with asyncio.timeout(stall):
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            # The response stays unfinished, which closes the connection.
            self.service.log.info("a reader of events took nothing for %g s", stall, extra={"request": self.job.id})

    async def _texts(self) -> AsyncIterator[bytes]:
        job, seen, said = self.job, 0, -1
        flag = job.read()
        try:
            while True:
                try:
                    async with asyncio.timeout(self.service.settings.comment_seconds):
                        await flag.wait()
                except TimeoutError:
                    yield _COMMENT
                    continue
                flag.clear()
                # Once more after the end, for what was told before it.
                is_last = job.ended.is_set()
                if job.done != said:
                    said = job.done
                    yield message("progress", {"done": said, "total": job.total})
                for preview in job.previews(seen):
                    seen = preview.version
                    text = preview.text
                    yield await self.service.aside(encoded_preview, preview) if text is None else text
                if is_last:
                    break
        finally:
            job.leave(flag)
        yield await self._end()

    async def _end(self) -> bytes:
        job = self.job
        job.is_fetched = True
        assert job.future is not None
        refusal = told(job, self.service.is_closing)
        if refusal is not None:
            return message("error", {"status": refusal.status, "detail": refusal.detail})
        images = await self.service.aside(_encoded_images, job.future.result())
        return message("done", {"id": job.id, "images": images, "seconds": job.seconds})


def _encoded_images(images: Tensor) -> list[str]:
    return [as_base64(image) for image in pixels(images)]
