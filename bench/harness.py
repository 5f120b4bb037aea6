"""How the benchmarks measure: interleaved arms, medians, bytes against the machine's own copy bandwidth."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROUNDS = 300
WARMUP = 30
# Of glibc's <malloc.h>; the threshold is the largest that it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD = 1 << 25


def _keep_freed_memory() -> bool:
    """Have freed memory of up to 32 MiB kept for the next array; whether this machine's allocator can.

    Left to itself glibc hands it back to the system or not as the order of earlier frees has it. An op of a small image
    then takes up to 24 times as long, page by page, in one process and not in the next, for us and for our peers.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_THRESHOLD, _MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, 1 << 30))
    )


KEEPS_FREED_MEMORY = _keep_freed_memory()


def race(arms: dict[str, Callable[[], object]], rounds: int = ROUNDS, warmup: int = WARMUP) -> dict[str, list[float]]:
    """Seconds of each call, the arms taking turns so that a disturbance of the machine hits all of them alike."""
    for arm in arms.values():
        for _ in range(warmup):
            arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: dict[str, list[float]], subject: str) -> dict[str, float]:
    """Median microseconds per arm, their quartiles for the subject, and the peers' medians over the subject's."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    low, _, high = statistics.quantiles(seconds[subject], n=4)
    out = {f"{name}_us": 1e6 * value for name, value in median.items()}
    out |= {f"times_faster_than_{name}": value / median[subject] for name, value in median.items() if name != subject}
    return out | {"quartile_low_us": 1e6 * low, "quartile_high_us": 1e6 * high}


@functools.cache
def copy_gigabytes_per_second(num_bytes: int) -> float:
    """Bandwidth of a copy between two buffers of this size in all, read plus written, as warm as the ops' own."""
    source = torch.randn(max(1, num_bytes // 8))
    target = torch.empty_like(source)
    seconds = race({"copy": lambda: target.copy_(source)}, 200)["copy"]
    return 8 * source.numel() / statistics.median(seconds) / 1e9


def machine() -> dict[str, object]:
    """Processor, load, versions and commit: what a figure means nothing without."""
    cpuinfo = Path("/proc/cpuinfo")
    model = next(
        (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    import fastdiff._C

    packages = ("fastdiff-ddpm", "torch", "numpy", "diffusers", "pytest-benchmark")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": fastdiff._C.cpu_isa(),
        "keeps_freed_memory": KEEPS_FREED_MEMORY,
        "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": commit.stdout.strip(),
    }
