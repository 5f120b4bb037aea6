"""What a server gains by putting requests together, what it costs, and whether it stays as it was.

    python bench/serving.py digits|ho-cifar10|soak [--seconds 600]

Starts `fastdiff serve` on loopback, with random weights, whose time is that of trained ones, and sends it requests of 1
to 4 images by samplers of 10 to 50 steps. Writes the part into bench/results/serving.json and .md, beside the others
that are there.

digits, ho-cifar10: the same requests one at a time, each sent when the one before is answered, and then arriving at
random, at eight times the rate that one at a time keeps up with. Throughput is images over the time from the first
arrival to the last answer. Waiting is from a request's arrival to its answer; that of one at a time follows from its
times of service and the same arrivals, first come first served. "Beside the network" is the share of the engine's
thread that is not the network: choosing, joining, the tables' rows, results. "Idle" is the processor time of the server
in two seconds without a request.
soak: requests of all kinds for ten minutes, a third of them dropped by their client at a random time; memory, open
files, threads and requests in the engine along the way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from harness import machine

RESULTS = Path(__file__).parent / "results" / "serving"
SAMPLERS = ["ddim", "ddpm", "dpmpp_2m", "unipc", "euler_ancestral"]
NUMBERS = {"digits": 64, "ho-cifar10": 32}
CAPACITY = {"digits": 32, "ho-cifar10": 16}
# Times the rate that one at a time keeps up with.
PRESSURE = 8.0


@contextmanager
def server(preset: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server of a preset with random weights, and its process."""
    import torch

    import fastdiff as fd
    from fastdiff.files.checkpoint import save_model
    from fastdiff.files.data import DataScaling

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        unet = fd.UNet(fd.UNetConfig.preset(preset))
        save_model(Path(folder) / "model", unet, fd.Diffusion(fd.NoiseSchedule.cosine(1000)), DataScaling(256))
        command = [sys.executable, "-m", "fastdiff", "serve", f"{folder}/model", "--port", "0", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            try:
                address = ""
                while not address:
                    line = process.stdout.readline()
                    if not line:
                        raise RuntimeError("the server ended before it was ready")
                    found = re.search(r"http://[^\s\"]+", line)
                    address = found[0].rstrip("/") if found else ""
                # Read on, or the server would wait for it.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                wait_until_ready(address)
                yield address, psutil.Process(process.pid)
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()


def wait_until_ready(address: str) -> None:
    for _ in range(600):
        with suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the server is not ready after a minute")


def requests(number: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "num": chance.randint(1, 4),
            "sampler": chance.choice(SAMPLERS),
            "steps": chance.randint(10, 50),
            "seed": chance.randrange(2**32),
        }
        for _ in range(number)
    ]


async def ask(address: str, request: dict[str, Any]) -> tuple[float, int]:
    """Seconds to the answer, and its status. A client of a few lines, which leaves the processors to the server."""
    began = time.perf_counter()
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(request)
    head = (
        f"POST /v1/images HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: application/x-npz\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write((head + body).encode())
        answer = await reader.read()
    finally:
        writer.close()
    return time.perf_counter() - began, int(answer.split(b" ", 2)[1])


async def one_at_a_time(address: str, asked: list[dict[str, Any]]) -> list[float]:
    """Seconds of each request, sent when the one before was answered."""
    found = [await ask(address, request) for request in asked]
    assert {status for _, status in found} == {200}
    return [seconds for seconds, _ in found]


async def together(address: str, asked: list[dict[str, Any]], arrivals: list[float]) -> tuple[list[float], float]:
    """Seconds from each arrival to its answer, and from the first arrival to the last answer."""
    began = time.perf_counter()

    async def arrive(request: dict[str, Any], at: float) -> float:
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - began)))
        _, status = await ask(address, request)
        assert status == 200, status
        return time.perf_counter() - began - at

    waited = await asyncio.gather(*(arrive(*pair) for pair in zip(asked, arrivals, strict=True)))
    return list(waited), time.perf_counter() - began


def queued(service: list[float], arrivals: list[float]) -> list[float]:
    """Waiting of requests that are served one at a time, first come first served."""
    free, waited = 0.0, []
    for seconds, at in zip(service, arrivals, strict=True):
        free = max(free, at) + seconds
        waited.append(free - at)
    return waited


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def load(preset: str) -> dict[str, Any]:
    asked = requests(NUMBERS[preset])
    images = sum(request["num"] for request in asked)
    with server(preset, "--capacity", str(CAPACITY[preset])) as (address, process):
        # The weights are packed, and the tables built.
        asyncio.run(together(address, asked[:8], [0.0] * 8))
        service = asyncio.run(one_at_a_time(address, asked))
        chance = random.Random(1)
        gap = sum(service) / len(asked) / PRESSURE
        arrivals, at = [], 0.0
        for _ in asked:
            arrivals.append(at)
            at += chance.expovariate(1 / gap)
        before = httpx.get(f"{address}/v1/stats").json()
        waited, seconds = asyncio.run(together(address, asked, arrivals))
        after = httpx.get(f"{address}/v1/stats").json()
        time.sleep(1)
        used = sum(process.cpu_times()[:2])
        time.sleep(2)
        idle = sum(process.cpu_times()[:2]) - used
    network, other, batches, evaluations = (
        after[name] - before[name] for name in ("seconds_network", "seconds_other", "batches", "evaluations")
    )
    return {
        "requests": len(asked),
        "images": images,
        "capacity": CAPACITY[preset],
        "one_at_a_time": images / sum(service),
        "together": images / seconds,
        "times": sum(service) / seconds,
        "waiting_one_p50_p99": [percentile(queued(service, arrivals), share) for share in (0.5, 0.99)],
        "waiting_together_p50_p99": [percentile(waited, share) for share in (0.5, 0.99)],
        "fill": evaluations / batches / CAPACITY[preset],
        "beside_the_network": other / (network + other),
        "busy": (network + other) / seconds,
        "idle_processor_seconds": idle,
    }


async def soak(address: str, process: psutil.Process, seconds: float) -> list[dict[str, float]]:
    chance, marks, end = random.Random(0), [], time.monotonic() + seconds
    outcomes = {"answered": 0, "dropped": 0, "refused": 0}

    async def client_loop() -> None:
        while time.monotonic() < end:
            request = requests(1, chance.randrange(2**32))[0]
            patience = chance.uniform(0.0, 0.3) if chance.random() < 1 / 3 else None
            try:
                _, status = await asyncio.wait_for(ask(address, request), patience)
                outcomes["answered" if status == 200 else "refused"] += 1
                assert status in (200, 429), status
            except TimeoutError:
                outcomes["dropped"] += 1

    async def watch(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(30.0, seconds / 10))
            stats = (await client.get("/v1/stats")).json()
            marks.append(
                {
                    "minute": round((seconds - (end - time.monotonic())) / 60, 2),
                    "resident_mib": process.memory_info().rss / 2**20,
                    "open_files": process.num_fds(),
                    "threads": process.num_threads(),
                    "requests_in_engine": stats["requests"],
                    "finished": stats["finished"],
                    "cancelled": stats["cancelled"],
                    "failed": stats["failed"],
                }
            )

    async with httpx.AsyncClient(base_url=address, timeout=None) as client:
        await asyncio.gather(watch(client), *(client_loop() for _ in range(12)))
        await asyncio.sleep(2)
        left = (await client.get("/v1/stats")).json()["requests"]
    return [*marks, {**outcomes, "left_in_engine": left}]


def as_markdown(parts: dict[str, Any]) -> str:
    lines = ["# Serving", "", f"Written by {__file__.rsplit('/', 1)[-1]}; what is measured stands at its head.", ""]
    loads = {name: part for name, part in parts.items() if name in NUMBERS}
    if loads:
        lines += [
            "| network | requests (images) | slots | one at a time, images/s | together | times | "
            "waiting one at a time, median / 99% | together | fill | beside the network | idle, s of processor |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, part in loads.items():
            alone, joint = (
                " / ".join(f"{value:.2f} s" for value in part[f"waiting_{arm}_p50_p99"]) for arm in ("one", "together")
            )
            lines.append(
                f"| {name} | {part['requests']} ({part['images']}) | {part['capacity']} | "
                f"{part['one_at_a_time']:.1f} | "
                f"{part['together']:.1f} | {part['times']:.2f}x | {alone} | {joint} | {part['fill']:.0%} | "
                f"{part['beside_the_network']:.1%} | {part['idle_processor_seconds']:.2f} |"
            )
        lines.append("")
    if "soak" in parts:
        *marks, outcome = parts["soak"]["marks"]
        lines += ["## Soak", "", ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in outcome.items()), ""]
        lines += ["| " + " | ".join(name.replace("_", " ") for name in marks[0]) + " |", "|---" * len(marks[0]) + "|"]
        lines += ["| " + " | ".join(f"{value:g}" for value in mark.values()) + " |" for mark in marks]
        lines.append("")
    for name, part in parts.items():
        lines.append(f"{name}: {part['machine']['processor']}, {part['machine']['cores']} cores, {part['date']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*NUMBERS, "soak"])
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    if arguments.part == "soak":
        with server("digits", "--capacity", "16") as (address, process):
            found: dict[str, Any] = {"marks": asyncio.run(soak(address, process, arguments.seconds))}
    else:
        found = load(arguments.part)
    found |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    path = RESULTS.with_suffix(".json")
    parts = json.loads(path.read_text()) if path.exists() else {}
    parts[arguments.part] = found
    path.write_text(json.dumps(parts, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(as_markdown(parts))
    print(as_markdown(parts))


if __name__ == "__main__":
    main()
