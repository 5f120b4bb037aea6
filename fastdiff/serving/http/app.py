"""The application: the routes over an engine, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from fastdiff import serving
from fastdiff.serving import Engine
from fastdiff.serving.http.bodies import NPZ, PNG, is_asynchronous, read_body, wanted
from fastdiff.serving.http.events import EventStream
from fastdiff.serving.http.failures import Refusal
from fastdiff.serving.http.gate import Gate
from fastdiff.serving.http.jobs import Job
from fastdiff.serving.http.metrics import CONTENT_TYPE
from fastdiff.serving.http.reference import reference
from fastdiff.serving.http.schemas import Failure, ImagesRequest, ImagesResponse, Progress
from fastdiff.serving.http.service import Service
from fastdiff.serving.http.settings import Settings
from fastdiff.version import __version__

__all__ = ["create_app"]

_PAGE = Path(serving.__file__).parent / "page"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_IMAGES = {
    "model": ImagesResponse,
    "description": "The images. As image/png a grid where there are several, X-Fastdiff-Grid: ROWSxCOLUMNS; as "
    "application/x-npz arr_0 uint8 [num, H, W, C], or with ?float=1 samples float32 [num, C, H, W].",
    "content": {PNG: _BINARY, NPZ: _BINARY},
}


def _fails(*statuses: int) -> dict[int | str, dict[str, Any]]:
    said = {
        401: "The key is missing or wrong.",
        404: "There is no request of this id, or it is not kept any more.",
        409: "The id of X-Request-Id is in use.",
        410: "It was cancelled.",
        413: "The body is too large.",
        422: "Something in the request does not fit; the sentence names it.",
        429: "The queue is full; Retry-After says when to come again.",
        500: "The network failed on this request.",
        503: "The server stops.",
        504: "It was not done by its deadline.",
    }
    return {status: {"model": Failure, "description": said[status]} for status in statuses}


def create_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """The application over an engine, which it starts when it is started, and closes at its end.

    Args:
        engine: Not yet started.
        settings: What bounds the server.

    Returns:
        The application; `app.state.service` can be told to drain.

    Raises:
        ValueError: an engine without limits of images and steps per request.
    """
    service = Service(engine, settings or Settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.open()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="fastdiff",
        version=__version__,
        summary="Images from a denoising diffusion model; see docs/serving.md.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Gate, service=service)
    _add_images(app, service)
    _add_reports(app, service)
    app.mount("/static", StaticFiles(directory=_PAGE, check_dir=False))
    return app


def _add_images(app: FastAPI, service: Service) -> None:
    """The routes of requests for images."""
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ImagesRequest"}}}}

    def job_of(id: str) -> Job:
        job = service.kept.get(id)
        # The engine may still refuse one whose future is not there.
        if job is None or job.future is None:
            raise Refusal(404, f"there is no request {id!r}: results are kept {service.settings.keep_seconds:g} s", "")
        return job

    async def answer(request: Request, job: Job) -> Response:
        kind, is_float = wanted(request)
        content, headers = await service.answer(job, kind, is_float)
        return Response(content, media_type=kind, headers=headers)

    @app.post(
        "/v1/images",
        summary="Make images, and answer with them; with ?wait=0 or Prefer: respond-async with an id at once.",
        openapi_extra={"requestBody": {**body, "required": True}},
        responses={200: _IMAGES, 202: {"description": "The id."}, **_fails(401, 409, 413, 422, 429, 500, 503, 504)},
    )
    async def make_images(request: Request) -> Response:
        try:
            kind, is_float = wanted(request)
            content = await read_body(request, service.settings)
        except Refusal as refusal:
            service.metrics.refused(refusal.outcome)
            raise
        is_later = is_asynchronous(request)
        job = await service.take(content, request.state.id, pictures_only=kind != NPZ and not is_later)
        request.state.about = {"num": len(job.about["sample_ids"]), **{k: job.about[k] for k in ("sampler", "steps")}}
        if is_later:
            headers = {"Location": f"/v1/requests/{job.id}", "Preference-Applied": "respond-async"}
            return JSONResponse({"id": job.id}, 202, headers)
        await service.done(job, request.receive)
        found, headers = await service.answer(job, kind, is_float)
        return Response(found, media_type=kind, headers=headers)

    @app.get(
        "/v1/requests/{id}",
        summary="How far a request is, or its images, as POST /v1/images gives them.",
        responses={
            200: _IMAGES,
            202: {"model": Progress, "description": "Not yet."},
            **_fails(401, 404, 410, 500, 504),
        },
    )
    async def get_request(id: str, request: Request) -> Response:
        job = job_of(id)
        if not job.ended.is_set():
            return JSONResponse({"id": id, "done": job.done, "total": job.total}, 202)
        service.check(job)
        return await answer(request, job)

    @app.get(
        "/v1/requests/{id}/events",
        summary="A request as server-sent events: progress, preview, done, error.",
        responses={200: {"description": "The stream.", "content": {"text/event-stream": {}}}, **_fails(401, 404)},
    )
    async def get_events(id: str) -> Response:
        return _Streamed(EventStream(service, job_of(id)))

    @app.delete(
        "/v1/requests/{id}",
        summary="Cancel a request, or forget its images.",
        status_code=204,
        responses=_fails(401, 404),
    )
    async def delete_request(id: str) -> Response:
        service.forget(job_of(id))
        return Response(status_code=204)

    schemas = ImagesRequest.model_json_schema()
    described = app.openapi

    def openapi() -> dict[str, Any]:
        found = described()
        found.setdefault("components", {}).setdefault("schemas", {})["ImagesRequest"] = schemas
        return found

    app.openapi = openapi  # type: ignore[method-assign]


def _add_reports(app: FastAPI, service: Service) -> None:
    """The routes that say how the server is, and what it is."""

    @app.get("/v1/info", summary="The model, its samplers and the limits.", responses=_fails(401))
    async def info() -> Response:
        return JSONResponse(service.info)

    @app.get("/v1/stats", summary="The engine's numbers.", responses=_fails(401))
    async def stats() -> Response:
        return JSONResponse(service.stats())

    @app.get("/health", summary="200 while the process is alive.")
    async def health() -> Response:
        return JSONResponse({"status": "alive"})

    @app.get("/ready", summary="200 while new requests are taken.", responses=_fails(503))
    async def ready() -> Response:
        return JSONResponse({"status": "draining"}, 503) if service.is_draining else JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="For Prometheus.", responses=_fails(401))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html")


class _Streamed(Response):
    """A response whose sending is an application's."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._stream(scope, receive, send)
