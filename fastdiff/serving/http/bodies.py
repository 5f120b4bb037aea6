"""What a client sends and wants, from the headers and the stream of its request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from fastdiff.process.checks import shown
from fastdiff.serving.http.failures import Refusal
from fastdiff.serving.http.settings import Settings

__all__ = ["JSON", "NPZ", "PNG", "gone", "is_asynchronous", "read_body", "wanted"]

JSON, PNG, NPZ = "application/json", "image/png", "application/x-npz"
# What a range of types stands for here.
_RANGES = {"*/*": JSON, "application/*": JSON, "image/*": PNG}


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, counted while it comes, whatever its length was said to be.

    Raises:
        Refusal: it is no JSON by its type, too large, too slow, or its sender has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        # Also the guard against forms of other sites: a browser asks before it sends this type there.
        raise Refusal(415, f"the body must be JSON: Content-Type: {JSON}, got {shown(kind)}", "invalid")
    most = settings.max_body
    too_large = Refusal(413, f"the body must be at most {most} bytes", "invalid", {"Connection": "close"})
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise Refusal(
            408, f"the body must be there within {settings.body_seconds:g} s", "invalid", {"Connection": "close"}
        ) from error
    except ClientDisconnect as error:
        raise Refusal(499, "the client went away", "cancelled") from error
    return b"".join(parts)


def wanted(request: Request) -> tuple[str, bool]:
    """The media type of the answer by the header Accept, and whether the engine's numbers are wanted, by float=1.

    Raises:
        Refusal: it accepts none that there are.
    """
    is_float = request.query_params.get("float") == "1"
    best, found = 0.0, None
    accept = request.headers.get("accept", "*/*")
    for entry in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        floats = is_float
        for name, _, value in (parameter.partition("=") for parameter in parameters):
            if name == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
            floats = floats or (name == "float" and value == "1")
        kind = _RANGES.get(kind, kind)
        if kind in (JSON, PNG, NPZ) and quality > best:
            best, found = quality, (kind, floats)
    if found is None:
        raise Refusal(406, f"Accept must name {JSON}, {PNG} or {NPZ}, got {shown(accept)}", "invalid")
    return found


def is_asynchronous(request: Request) -> bool:
    """Whether the client wants an id at once, and the images later."""
    preferred = {part.strip().lower() for part in request.headers.get("prefer", "").split(",")}
    return request.query_params.get("wait") == "0" or "respond-async" in preferred


async def gone(receive: Callable[[], Awaitable[Any]]) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
