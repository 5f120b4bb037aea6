"""How the GPU suite measures: a gate of accuracy first, then arms in turns, timed by the device's own clock.

A kernel's time is that of some calls captured into a graph, each on buffers that are not in the cache, with the queue
filled before the clock starts: the CPU has no part in it. What the CPU needs to launch a call is measured apart.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Calls in a captured stretch, of small things; of large ones so many that a stretch takes no longer than this.
CALLS = 20
LONGEST_STRETCH = 2e-2
# Seconds of a stretch of calls that are not captured, at least, and how many.
STRETCH = 5e-3
MAX_CALLS = 200
# More than any cache: sets of buffers are so many that none is still in the cache at its next turn.
COLD_BYTES = 256 << 20
# Of the GPU's clock, about a millisecond: the CPU fills the queue meanwhile.
SLEEP_CYCLES = 2_000_000
# A gate: no more than twice plain PyTorch's error in the same type, plus some roundings of that type.
GATE_SLACK = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Results = Tensor | tuple[Tensor, ...]
Inputs = tuple[Any, ...]


@dataclass
class Case:
    """One thing to measure.

    Attributes:
        name: Op and shape.
        make: Inputs of the i-th set, in memory of their own.
        arms: "fastdiff", or any arm whose name begins with it, and its peers; each does the work once on some inputs.
        exact: The results in float64.
        plain: Which peer says how far off one may be; None where the peers draw noise of their own.
        bytes_moved: What has to be read and written at least.
        flops: Floating point operations.
        tf32: Whether float32 products of all arms may use TensorFloat-32; None where there are none.
        extra: More for its row.
    """

    name: str
    make: Callable[[int], Inputs]
    arms: dict[str, Callable[[Inputs], Results]]
    exact: Callable[[Inputs], Results]
    plain: str | None
    dtype: torch.dtype
    bytes_moved: int = 0
    flops: float = 0.0
    tf32: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """What a clock runs.

    Attributes:
        run: Does the work so many times.
        calls: How many.
        is_captured: It is one launch, and the cache is to be cold and the queue full before it.
    """

    run: Callable[[], object]
    calls: int = 1
    is_captured: bool = False


class Clock:
    """Times calls on a device.

    Args:
        device: A GPU is timed by its own events, the CPU by the wall.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    @functools.cached_property
    def _cache_filler(self) -> Tensor:
        return torch.empty(COLD_BYTES, dtype=torch.uint8, device=self.device)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def captured(self, call: Callable[[int], object], sets: int) -> Arm:
        """Calls on set after set as one launch; on the CPU a loop."""
        for i in range(max(3, sets)):
            call(i % sets)
        self.synchronize()
        start = time.perf_counter()
        call(0)
        self.synchronize()
        count = max(2, min(CALLS, int(LONGEST_STRETCH / (time.perf_counter() - start))))
        if not self.on_gpu:
            return Arm(lambda: [call(i % sets) for i in range(count)], count)
        # Outputs that are kept are written to other memory each.
        kept: deque[object] = deque(maxlen=sets)
        replay = captured(lambda: [kept.append(call(i % sets)) for i in range(count)], warm_ups=1)
        return Arm(replay, count, is_captured=True)

    def stretch(self, arm: Arm, repeats: int = 1) -> float:
        """Seconds of one call, of those of an arm's runs in a row."""
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(repeats):
                arm.run()
            return (time.perf_counter() - start) / (repeats * arm.calls)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if arm.is_captured:
            self._cache_filler.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)
        begin.record()
        for _ in range(repeats):
            arm.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / (repeats * arm.calls)

    def race(self, arms: Mapping[str, Arm | Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Seconds per call of each arm, taking turns. A plain callable is called again and again, uncaptured."""
        runs: dict[str, tuple[Arm, int]] = {}
        for name, given in arms.items():
            arm = given if isinstance(given, Arm) else Arm(given)
            repeats = 1
            if not isinstance(given, Arm):
                for _ in range(3):
                    arm.run()
                self.synchronize()
                repeats = max(1, min(MAX_CALLS, round(STRETCH / max(self.stretch(arm), 1e-7))))
            runs[name] = arm, repeats
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, (arm, repeats) in runs.items():
                self.synchronize()
                seconds[name].append(self.stretch(arm, repeats))
        return seconds

    def cpu_seconds(self, call: Callable[[], object], calls: int = 20, rounds: int = 5) -> float:
        """What the CPU needs for a call that launches work: the queue takes so many without waiting for the GPU."""
        found = []
        for _ in range(rounds):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            found.append((time.perf_counter() - start) / calls)
        self.synchronize()
        return statistics.median(found)


def captured(run: Callable[[], object], warm_ups: int = 3) -> Callable[[], None]:
    """A run as one launch of a CUDA graph, which holds what it allocated."""
    before = torch.cuda.current_stream()
    stream = torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            run()
    before.wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # A finaliser that frees memory or unloads a kernel ends a capture.
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=stream):
            run()
    finally:
        gc.enable()
        # A capture that fails leaves its stream the current one.
        torch.cuda.set_stream(before)
    # The first launch brings it to the device.
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


@contextlib.contextmanager
def precision(tf32: bool | None) -> Iterator[None]:
    """PyTorch's own switches, which fastdiff's kernels follow: TensorFloat-32 in float32 products, or not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if tf32 is not None:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@dataclass(frozen=True)
class Ceilings:
    """What the card can do, measured: a large copy and a large matrix product.

    Attributes:
        bytes_per_second: Read plus written.
        flops: Per second, by what a product may use.
    """

    bytes_per_second: float
    flops: dict[str, float]

    @staticmethod
    @functools.cache
    def of(device: torch.device, quick: bool) -> Ceilings:
        """Measured once in a process."""
        side = 256 if quick else 8192
        flops = {}
        for kind, dtype, tf32 in (
            ("bfloat16", torch.bfloat16, None),
            ("tf32", torch.float32, True),
            ("float32", torch.float32, False),
        ):
            # Ordinary cores take long.
            n = side // 2 if kind == "float32" else side
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            with precision(tf32):
                arm = Clock(device).captured(lambda i, a=a, b=b: a @ b, 1)
                seconds = statistics.median(Clock(device).race({"product": arm}, 3)["product"])
            flops[kind] = 2 * n**3 / seconds
        return Ceilings(copy_bytes_per_second(device, (1 << 20) if quick else (2 << 30)), flops)

    def row(self) -> dict[str, Any]:
        """As a row."""
        rates = ", ".join(f"{kind} {rate / 1e12:.1f} TFLOP/s" for kind, rate in self.flops.items())
        note = f"copy {self.bytes_per_second / 1e12:.2f} TB/s; products: {rates}"
        return {"gate": "none", "note": note, "bytes_per_second": self.bytes_per_second, "flops": self.flops}

    def floor(self, bytes_moved: float, flops: float, dtype: torch.dtype, tf32: bool | None = None) -> float:
        """Seconds that this must take at least; a float32 product without TensorFloat-32 may be three with it."""
        rate = self.flops["bfloat16"]
        if dtype == torch.float32:
            rate = self.flops["tf32"] if tf32 else max(self.flops["float32"], self.flops["tf32"] / 3)
        return max(bytes_moved / self.bytes_per_second, flops / rate)


def measure(case: Case, clock: Clock, rounds: int, ceilings: Ceilings) -> dict[str, Any]:
    """The row of a case: its gate, and, where that is passed, times.

    Returns:
        name, errors and limit of the gate, "gate" ("passed" or "failed"); per arm median and least microseconds,
        quartiles, the CPU's microseconds; the peers' medians over fastdiff's; GB/s, share of the bandwidth of a copy of
        as many bytes, TFLOP/s, the share that the floor is of the time.
    """
    with precision(case.tf32):
        first = case.make(0)
        row = gate(case, first)
        if row["gate"] != "passed":
            return row
        sets = num_sets(first)
        inputs = [first, *(case.make(i) for i in range(1, sets))]
        arms: dict[str, Arm | Callable[[], object]] = {}
        failed = {}
        for name, arm in case.arms.items():
            try:
                arms[name] = clock.captured(lambda i, arm=arm: arm(inputs[i]), sets)
            except RuntimeError as error:
                # Its time is then that of calls from Python, which the row says.
                arms[name] = lambda arm=arm: arm(first)
                failed[name] = str(error).splitlines()[0][:100]
        row |= summary(clock.race(arms, rounds))
        row["cpu_us"] = {name: 1e6 * clock.cpu_seconds(lambda arm=case.arms[name]: arm(first)) for name in arms}
    if failed:
        row["note"] = "called, not captured: " + ", ".join(f"{name} ({why})" for name, why in failed.items())
    median = row["us"]["fastdiff"] / 1e6
    if case.bytes_moved:
        speed = case.bytes_moved / median
        row |= {"gigabytes_per_second": speed / 1e9}
        row |= {"fraction_of_copy": speed / copy_bytes_per_second(clock.device, case.bytes_moved)}
    if case.flops:
        row["teraflops"] = case.flops / median / 1e12
    floor = ceilings.floor(case.bytes_moved, case.flops, case.dtype, case.tf32)
    return row | {"floor_us": 1e6 * floor, "fraction_of_floor": floor / median}


def gate(case: Case, inputs: Inputs) -> dict[str, Any]:
    """Whether fastdiff's arms are as accurate as they have to be: a row without times."""
    exact = case.exact(inputs)
    errors = {name: error_of(arm(inputs), exact) for name, arm in case.arms.items() if name.startswith("fastdiff")}
    plain = 0.0 if case.plain is None else error_of(case.arms[case.plain](inputs), exact)
    row = {"name": case.name, "dtype": kind_of(case.dtype, case.tf32), **case.extra}
    return row | verdict(errors, plain, case.dtype)


def verdict(errors: dict[str, float], plain: float, dtype: torch.dtype) -> dict[str, Any]:
    """The gate of a row: errors against what plain PyTorch's allows."""
    limit = 2 * plain + GATE_SLACK[dtype]
    passed = all(error <= limit for error in errors.values())
    return {"gate": "passed" if passed else "failed", "errors": errors, "plain_error": plain, "limit": limit}


def kind_of(dtype: torch.dtype, tf32: bool | None = None) -> str:
    """A type in words."""
    name = str(dtype).removeprefix("torch.")
    return name if tf32 is None or dtype != torch.float32 else f"{name}, {'TF32' if tf32 else 'strict'}"


def num_sets(inputs: Inputs) -> int:
    """How many sets of inputs there have to be, so that none is in the cache at its turn."""
    size = sum(value.untyped_storage().nbytes() for value in inputs if isinstance(value, Tensor) and value.is_cuda)
    return max(2, min(CALLS, math.ceil(COLD_BYTES / max(size, 1)))) if size else 1


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, least, quartiles, and ratios to the arm "fastdiff"."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in seconds.items() if len(values) > 1}
    ours = median.get("fastdiff")
    return {
        "us": {name: 1e6 * value for name, value in median.items()},
        "least_us": {name: 1e6 * min(values) for name, values in seconds.items()},
        "quartiles_us": {name: [1e6 * q[0], 1e6 * q[2]] for name, q in quartiles.items()},
        "times_faster_than": {}
        if ours is None
        else {name: value / ours for name, value in median.items() if name != "fastdiff"},
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


@functools.cache
def copy_bytes_per_second(device: torch.device, num_bytes: int) -> float:
    """Bandwidth of a copy that moves so many bytes, read plus written, as cold as the kernels' own."""
    clock, count = Clock(device), max(1, num_bytes // 8)
    sets = [(torch.randn(count, device=device), torch.empty(count, device=device)) for _ in range(2)]
    while len(sets) < num_sets(sets[0]):
        sets.append(tuple(value.clone() for value in sets[0]))  # type: ignore[arg-type]
    arm = clock.captured(lambda i: sets[i][1].copy_(sets[i][0]), len(sets))
    seconds = clock.race({"copy": arm}, 9)["copy"]
    return 8 * count / statistics.median(seconds)


def _as_tuple(results: Results | Iterable[Tensor]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)
