"""`fastdiff serve`: a model behind HTTP, with a page to try it on."""

from __future__ import annotations

import ipaddress
import warnings
from typing import Annotated, Any

import typer

from fastdiff.cli.options import DeviceOption, MemoryOption, ModelArgument, ThreadsOption, WeightsOption, load_pipeline
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown

__all__ = ["serve"]

_MEBIBYTE = 2**20


def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at: 127.0.0.1 is this machine alone, 0.0.0.0 every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which the log says.")] = 8000,
    capacity: Annotated[int, typer.Option(min=2, help="Images evaluated at a time.")] = 16,
    precision: Annotated[
        str | None, typer.Option(help="Of the engine on a CPU: fast, strict or bfloat16; fast, if left out.")
    ] = None,
    memory: MemoryOption = "normal",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="FASTDIFF_API_KEY", help="What clients must show. Better by the variable: others see options."
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Evaluations of an image.")] = 1000,
    max_num: Annotated[int, typer.Option(min=1, help="Images of a request.")] = 64,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Images that wait or run; beyond, requests are refused.")
    ] = 1024,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Height times width; four times the model's own, if left out.")
    ] = None,
    max_wait: Annotated[
        float | None, typer.Option(help="Seconds that a request may wait for its first evaluation; any, if left out.")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request.")] = 16,
    keep_seconds: Annotated[float, typer.Option(help="For which the images of ?wait=0 are kept.")] = 300.0,
    drain_seconds: Annotated[float, typer.Option(help="For which SIGTERM waits for what was taken.")] = 30.0,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Serve a model over HTTP: requests that come together share evaluations, each with the images it gets alone."""
    for name, seconds in (("max_wait", max_wait), ("drain_seconds", drain_seconds)):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise ValueError(f"{spelt(name)} must be a number of seconds above 0, got {shown(seconds)}")
    if not host:
        raise ValueError(f"{spelt('host')} must be an address, such as 127.0.0.1, got ''")
    if api_key is None and not _is_loopback(host):
        warnings.warn(f"{host} can be reached from other machines, and there is no --api-key", stacklevel=1)
    try:
        from fastdiff.serving.http.run import run
    except ImportError as error:
        raise RuntimeError(
            f'fastdiff serve needs packages that cannot be imported ({error}): pip install "fastdiff-ddpm[serve]"'
        ) from error

    from fastdiff.engine.native import check_precision
    from fastdiff.serving import Engine
    from fastdiff.serving.http.logs import write_json_lines
    from fastdiff.serving.http.settings import Settings

    settings = Settings(
        max_body=max_body * _MEBIBYTE, api_key=api_key, keep_seconds=keep_seconds, name=model.resolve().name
    )
    chosen: Any = precision
    if precision is not None:
        check_precision(precision)
    pipe = load_pipeline(model, device, weights, memory=memory)
    _, height, width = pipe.image_shape
    engine = Engine(
        pipe,
        capacity,
        precision=chosen,
        max_queued=max_queued,
        max_wait=max_wait,
        max_steps=max_steps,
        max_num=max_num,
        max_pixels=4 * height * width if max_pixels is None else max_pixels,
    )
    write_json_lines()
    if not run(engine, settings, host=host, port=port, drain_seconds=drain_seconds):
        raise RuntimeError("the server stopped before all that it had taken was done: its log says how much was left")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
