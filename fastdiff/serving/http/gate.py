"""What every request passes, whichever route it takes: its id, the key, headers, the log, and faults of our own."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from email.utils import formatdate
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastdiff.serving.http.failures import Refusal

if TYPE_CHECKING:
    from fastdiff.serving.http.service import Service

__all__ = ["Gate"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What needs no key: the page with its files, what a balancer asks, and the description of the routes.
_OPEN = re.compile(r"/|/health|/ready|/docs|/openapi\.json|/static/.*")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class Gate:
    """A middleware in plain ASGI.

    Args:
        app: What is behind it.
        service: Whose settings, log and metrics are used.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        key = service.settings.api_key
        self._key = None if key is None else f"bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = _header(scope, b"x-request-id")
        id = given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "id": id}
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", id.encode()), (b"date", _date(int(time.time())))]
                # The page's modules fit those of their own version alone, so a browser asks by their ETag.
                cached = b"no-store" if scope["path"].startswith("/v1/") else b"no-cache"
                own.append((b"cache-control", cached))
                message = {**message, "headers": [*message.get("headers", ()), *own, *_HEADERS]}
            await send(message)

        try:
            self._check(scope, given, id)
            await self.app(scope, receive, sent)
        except Refusal as refusal:
            if not status:
                await _say(sent, refusal.status, refusal.detail, id, refusal.headers)
        except Exception:
            self.service.log.exception("a fault of the server's own", extra={"request": id})
            if not status:
                await _say(sent, 500, "a fault of the server's own; its log says which, under the id", id, {})
        finally:
            self._note(scope, id, status, time.perf_counter() - began)

    def _check(self, scope: Scope, given: str | None, id: str) -> None:
        """Raises Refusal where the key or the id is not as it must be."""
        if self._key is not None and not _OPEN.fullmatch(scope["path"]):
            kind, _, token = (_header(scope, b"authorization") or "").partition(" ")
            shown = f"{kind.lower()} {token}".encode("latin-1")
            if not hmac.compare_digest(shown, self._key):
                raise Refusal(
                    401,
                    "this server needs its key: Authorization: Bearer KEY",
                    "refused",
                    {"WWW-Authenticate": "Bearer"},
                )
        if given is not None and given != id:
            raise Refusal(422, "X-Request-Id must be 1 to 64 letters, digits, dots, dashes and underscores", "invalid")

    def _note(self, scope: Scope, id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        self.service.metrics.answered(route, status)
        about = {"request": id, "method": scope["method"], "path": scope["path"], "status": status}
        about |= {"seconds": round(seconds, 6), **scope["state"].get("about", {})}
        # Of what a balancer or a chart asks all the time nothing is said.
        level = logging.DEBUG if route in ("/health", "/ready", "/metrics", "/v1/stats") else logging.INFO
        self.service.log.log(level, "answered", extra=about)


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


async def _say(send: Send, status: int, detail: str, id: str, headers: dict[str, str]) -> None:
    body = json.dumps({"detail": detail, "id": id}).encode()
    listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    listed += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


_last_date = (0, b"")


def _date(now: int) -> bytes:
    """Of this second, as HTTP writes it; made once a second."""
    global _last_date
    if _last_date[0] != now:
        _last_date = now, formatdate(now, usegmt=True).encode()
    return _last_date[1]
