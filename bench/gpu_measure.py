"""How the GPU suite measures: a gate of accuracy first, then arms in turns, timed by the device's own clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Seconds of one timed stretch at least, so that the clock's grain and the launch of events do not count.
STRETCH = 5e-4
MAX_CALLS = 200
# A gate: no more than twice plain PyTorch's error in the same type, plus some roundings of that type.
GATE_SLACK = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Results = Tensor | tuple[Tensor, ...]


@dataclass
class Case:
    """One thing to measure.

    Attributes:
        name: Op and shape.
        arms: "fastdiff", or any arm whose name begins with it, and its peers; calls that do the work once.
        exact: The results in float64, or None where the arms draw noise of their own and only "fastdiff" is gated.
        plain: Which peer says how far off one may be.
        bytes_moved: What has to be read and written at least.
        flops: Floating point operations.
        cleanup: Called afterwards.
    """

    name: str
    arms: dict[str, Callable[[], Results]]
    exact: Callable[[], Results]
    plain: str | None
    dtype: torch.dtype
    bytes_moved: int = 0
    flops: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


class Clock:
    """Times calls on a device.

    Args:
        device: A GPU is timed by its own events, the CPU by the wall.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def stretch(self, call: Callable[[], object], calls: int) -> float:
        """Seconds of one call, of so many in a row."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    def race(self, arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Seconds per call of each arm, taking turns."""
        calls = {}
        for name, arm in arms.items():
            for _ in range(3):
                arm()
            self.synchronize()
            once = max(self.stretch(arm, 1), 1e-7)
            calls[name] = max(1, min(MAX_CALLS, round(STRETCH / once)))
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, arm in arms.items():
                seconds[name].append(self.stretch(arm, calls[name]))
        return seconds


def measure(case: Case, clock: Clock, rounds: int, copy_bandwidth: float) -> dict[str, Any]:
    """The row of a case: its gate, and, where that is passed, times.

    Returns:
        name, error and limit of the gate, "gate" ("passed" or "failed"); median microseconds and quartiles per arm;
        the peers' medians over fastdiff's; GB/s, share of the copy bandwidth and TFLOP/s.
    """
    row = gate(case)
    if row["gate"] != "passed":
        return row
    seconds = clock.race(case.arms, rounds)
    row |= summary(seconds)
    median = row["us"]["fastdiff"] / 1e6
    if case.bytes_moved:
        speed = case.bytes_moved / median / 1e9
        row |= {"gigabytes_per_second": speed, "fraction_of_copy": speed / copy_bandwidth}
    if case.flops:
        row["teraflops"] = case.flops / median / 1e12
    return row


def gate(case: Case) -> dict[str, Any]:
    """Whether fastdiff's arms are as accurate as they have to be: a row without times."""
    exact = case.exact()
    errors = {name: error_of(arm(), exact) for name, arm in case.arms.items() if name.startswith("fastdiff")}
    plain = 0.0 if case.plain is None else error_of(case.arms[case.plain](), exact)
    limit = 2 * plain + GATE_SLACK[case.dtype]
    passed = all(error <= limit for error in errors.values())
    row = {"name": case.name, "dtype": str(case.dtype).removeprefix("torch."), **case.extra}
    return row | {"gate": "passed" if passed else "failed", "errors": errors, "plain_error": plain, "limit": limit}


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, quartiles, and ratios to the arm "fastdiff"."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in seconds.items()}
    return {
        "us": {name: 1e6 * value for name, value in median.items()},
        "quartiles_us": {name: [1e6 * q[0], 1e6 * q[2]] for name, q in quartiles.items()},
        "times_faster_than": {name: value / median["fastdiff"] for name, value in median.items() if name != "fastdiff"},
    }


def error_of(found: Results, exact: Results) -> float:
    """Largest difference over largest value, the worst of all results; infinite where one is not finite."""
    found, exact = _as_tuple(found), _as_tuple(exact)
    worst = 0.0
    for ours, theirs in zip(found, exact, strict=True):
        ours, theirs = ours.detach().double(), theirs.detach().double()
        if not bool(ours.isfinite().all()):
            return float("inf")
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        worst = max(worst, float((ours - theirs).abs().max()) / max(largest, 1e-30) if theirs.numel() else 0.0)
    return worst


def copy_gigabytes_per_second(device: torch.device, num_bytes: int) -> float:
    """Bandwidth of a copy that moves so many bytes, read plus written."""
    source = torch.randn(max(1, num_bytes // 8), device=device)
    target = torch.empty_like(source)
    seconds = Clock(device).race({"copy": lambda: target.copy_(source)}, 20)["copy"]
    return 8 * source.numel() / statistics.median(seconds) / 1e9


def _as_tuple(results: Results | Iterable[Tensor]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)
