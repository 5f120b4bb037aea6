"""A client of `fastdiff serve` in Python, with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdiff.process.checks import shown
from fastdiff.serving.http.pictures import has_pictures, png

__all__ = ["Asked", "Busy", "Client", "ServedEvent"]

_HEALTH_SECONDS = 5.0


class _Stays(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: the key is for this server, and a request for images would lose its body on the way."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stays)


class Asked(TypedDict, total=False):
    """What `Client.sample` and `Client.events` take: the fields of `fastdiff.serving.Request`, images as pixels.

    image is uint8 [H, W, C], or [num, H, W, C] for one each; mask [H, W], true where a pixel of the image is known.
    """

    num: int
    sampler: str
    steps: int | None
    options: Mapping[str, Any]
    seed: int
    sample_ids: Sequence[int] | None
    labels: Sequence[int | str] | None
    guidance: float | None
    null_label: int | str | None
    image: NDArray[np.uint8] | None
    mask: NDArray[np.bool_] | None
    strength: float | None
    priority: int
    deadline: float | None
    size: int | tuple[int, int] | None


class Busy(RuntimeError):
    """The server takes nothing now: its queue is full, or it stops.

    Attributes:
        retry_after: Seconds after which it may.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, eq=False)
class ServedEvent:
    """What a server tells of a request.

    Attributes:
        kind: "progress", "preview", or "done", the last.
        done: Evaluations done, of a progress.
        total: Of so many.
        samples: Which of the images a preview is of; all for the last.
        row: The row of the table that a preview is of.
        t: The network's time there.
        images: uint8 [n, H, W, C], of a preview or the last.
    """

    kind: str
    done: int = 0
    total: int = 0
    samples: range = range(0)
    row: int | None = None
    t: float | None = None
    images: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.uint8))


class Client:
    """A server of images.

    Args:
        url: Where it is, such as http://127.0.0.1:8000.
        api_key: What it asks for, if it does.
        timeout: Seconds without a byte after which a call gives up; None waits as long as the server does.

    Raises:
        ValueError: the URL is none of HTTP.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout: float | None = None) -> None:
        # Of a file or another scheme, urllib would open that.
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url must start with http:// or https://, got {shown(url)}")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def sample(self, **asked: Unpack[Asked]) -> NDArray[np.uint8]:
        """Have images made, and wait for them.

        Args:
            **asked: See `Asked`; what is left out is the server's default.

        Returns:
            uint8 [num, H, W, C].

        Raises:
            ValueError: something in the request does not fit, with the sentence that the server gives.
            PermissionError: the key is missing or wrong.
            Busy: the queue is full, or the server stops.
            TimeoutError: it was not done by its deadline, or the server said nothing for `timeout` seconds.
            RuntimeError: the server cannot be reached, or failed.
        """
        found: NDArray[np.uint8] = self._archive("/v1/images", asked)["arr_0"]
        return found

    def sample_float(self, **asked: Unpack[Asked]) -> NDArray[np.float32]:
        """The same as the engine gives them: float32 [num, C, H, W], about [-1, 1]."""
        found: NDArray[np.float32] = self._archive("/v1/images?float=1", asked)["samples"]
        return found

    def events(self, *, previews: int = 1, **asked: Unpack[Asked]) -> Iterator[ServedEvent]:
        """Have images made, and look on: progress, a preview every so many evaluations, and at last the images.

        A reader who is slow gets the latest previews and not each. Who stops reading before the end, by `close` or by
        leaving the loop, cancels the request.

        Args:
            previews: 0 for none.
            **asked: See `Asked`.

        Raises:
            As `sample`.
        """
        body = json.dumps({**_plain(asked), "previews": previews}).encode()
        with self._opened("/v1/images?wait=0", body) as response:
            id = json.load(response)["id"]
        is_done = False
        try:
            with self._opened(f"/v1/requests/{id}/events") as stream, self._read():
                for kind, data in _events(stream):
                    if kind == "error":
                        is_done = True
                        raise _error(data["status"], data["detail"], 1.0)
                    is_done = kind == "done"
                    yield _event(kind, data)
            if not is_done:
                raise RuntimeError(f"{self.url} broke off before the images were there")
        finally:
            if not is_done:
                self._cancel(id)

    def info(self) -> dict[str, Any]:
        """The model, its samplers and the limits, as GET /v1/info says them."""
        return self._json("/v1/info")

    def stats(self) -> dict[str, Any]:
        """The engine's numbers; see `fastdiff.serving.Stats`."""
        return self._json("/v1/stats")

    def health(self) -> bool:
        """Whether the server is there and takes requests."""
        try:
            with self._opened("/ready", timeout=_HEALTH_SECONDS):
                return True
        except (RuntimeError, TimeoutError):
            return False

    def _json(self, path: str) -> dict[str, Any]:
        with self._opened(path) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def _archive(self, path: str, asked: Asked) -> Mapping[str, NDArray[Any]]:
        body = json.dumps(_plain(asked)).encode()
        with self._opened(path, body, accept="application/x-npz") as response, self._read():
            data = response.read()
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return dict(archive)

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        """While an answer is read, whose head was there."""
        try:
            yield
        except (HTTPException, ConnectionError) as error:
            raise RuntimeError(f"{self.url} broke off before the images were there: {error}") from error

    def _cancel(self, id: str) -> None:
        try:
            self._opened(f"/v1/requests/{id}", method="DELETE").close()
        except (ValueError, RuntimeError, OSError):
            # It has ended, or the server has: there is nothing to cancel.
            return

    def _opened(
        self,
        path: str,
        body: bytes | None = None,
        *,
        accept: str = "*/*",
        method: str | None = None,
        timeout: float | None = None,
    ) -> HTTPResponse:
        headers = {**self._headers, "Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            response: HTTPResponse = _OPENER.open(request, timeout=timeout or self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise _error(error.code, _detail(error), _seconds(error.headers.get("Retry-After"))) from None
        except TimeoutError as error:
            raise TimeoutError(f"{self.url} said nothing for {timeout or self.timeout} s") from error
        except (OSError, HTTPException) as error:
            raise RuntimeError(f"{self.url} cannot be reached: {getattr(error, 'reason', error)}") from error
        return response


def _seconds(text: str | None) -> float:
    """Of a header Retry-After; a proxy may write a date there."""
    return float(text) if text is not None and text.isdecimal() else 1.0


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


def _error(status: int, detail: str, retry_after: float) -> Exception:
    if status in (400, 404, 406, 409, 413, 415, 422):
        return ValueError(detail)
    if status == 401:
        return PermissionError(detail)
    if status in (429, 503):
        return Busy(detail, retry_after)
    if status == 504:
        return TimeoutError(detail)
    return RuntimeError(f"the server answered {status}: {detail}")


def _plain(asked: Asked) -> dict[str, Any]:
    """What is asked, as JSON has it."""
    found: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    for name in ("sample_ids", "labels", "size"):
        if hasattr(found.get(name), "__iter__"):
            found[name] = [value.item() if hasattr(value, "item") else value for value in found[name]]
    if "image" in found:
        image = np.asarray(found["image"])
        if image.ndim not in (3, 4) or image.dtype != np.uint8 or not has_pictures(image.shape[-1]):
            raise ValueError(f"image must be uint8 [H, W, C] or [num, H, W, C], got {image.dtype} {list(image.shape)}")
        found["image"] = _text(image) if image.ndim == 3 else [_text(one) for one in image]
    if "mask" in found:
        mask = np.asarray(found["mask"])
        if mask.ndim != 2:
            raise ValueError(f"mask must be [H, W], got {list(mask.shape)}")
        found["mask"] = _text((mask != 0).astype(np.uint8)[..., None] * 255)
    return found


def _text(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(png(image)).decode()


def _events(stream: HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events; comments are left out."""
    kind = ""
    for line in stream:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def _event(kind: str, data: dict[str, Any]) -> ServedEvent:
    if kind == "progress":
        return ServedEvent(kind, data["done"], data["total"])
    images = np.stack([_pixels(text) for text in data["images"]])
    if kind == "done":
        return ServedEvent(kind, samples=range(len(images)), images=images)
    return ServedEvent(kind, samples=range(*data["samples"]), row=data["row"], t=data["t"], images=images)


def _pixels(text: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as picture:
        array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array
