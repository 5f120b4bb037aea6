"""One evaluation of a network in the GPU suite: eager and as a graph, against the peer's; and where its time goes."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_measure import Ceilings, Clock, captured, error_of, kind_of, precision, summary, verdict
from gpu_networks import ADM, HO, Networks
from gpu_tasks import Context, Row, Task, not_run
from torch import Tensor, nn

import fastdiff as fd

SIZES = ((HO, 256), (HO, 16), (HO, 1), (HO, 1024), (ADM, 64))
QUICK_SIZES = ((HO, 2),)
SPLITS = (16, 256, 1)
# Of the peer; the first has the better chance to be ready in time.
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune")
# Samples that the gate looks at: float64 takes sixty times as long as what is measured.
GATED_SAMPLES = 16

Call = Callable[[], Tensor]


class Evaluations:
    """The arms of a network and a batch, on the same input."""

    def __init__(self, context: Context, preset: str, batch: int) -> None:
        self.context, self.batch = context, batch
        self.device = torch.device(context.device)
        self.clock = Clock(self.device)
        self.networks = networks_of(context.device, context.quick, preset)
        self.x, self.t = self.networks.inputs(batch)
        self.labels = self.networks.labels(batch)

    def eager(self, model: nn.Module) -> Call:
        """A module as its user calls it."""

        def call() -> Tensor:
            with torch.inference_mode():
                y = model(self.x, self.t, **self.labels)
                return y if isinstance(y, Tensor) else y.sample

        return call

    @functools.cached_property
    def network(self) -> Any:
        """Our network compiled."""
        return fd.compile(self.networks.ours())

    def compiled(self) -> Tensor:
        """A call of it copies its input and replays a graph."""
        return self.network(self.x, self.t, *self.labels.values())

    def predicted_us(self) -> float | None:
        """What the plan's own figures say of an evaluation on such a GPU; None where they say nothing."""
        if not self.context.on_gpu or importlib.util.find_spec("fastdiff.engine.cuda.predict") is None:
            return None
        from fastdiff.engine.cuda.network import MAX_CHUNK
        from fastdiff.engine.cuda.predict import RATES, predict

        chunk = min(self.batch, MAX_CHUNK)
        plan = self.network.plan(*(self.networks.config.image_size,) * 2)
        rates = RATES["sm_90" if torch.cuda.get_device_capability() >= (9, 0) else "sm_80"]
        return 1e6 * sum(found.seconds for found in predict(plan, chunk, rates)) * self.batch / chunk

    def in_a_graph(self, call: Call) -> Callable[[], object]:
        """The same as one launch; on the CPU the call itself."""
        return captured(call) if self.context.on_gpu else call

    @functools.cached_property
    def _expected(self) -> tuple[Tensor, float]:
        """The first samples' outputs in float64, and the error of PyTorch's own norms and attention."""
        kind = torch.float64 if self.networks.preset == HO else torch.float32
        x, t, labels = self._first()
        with torch.no_grad(), precision(False):
            exact = self.networks.fresh(kind)(x.to(kind), t, **labels)
            return exact, error_of(self.networks.plain()(x, t, **labels), exact)

    def _first(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        some = slice(0, GATED_SAMPLES)
        return self.x[some], self.t[some], {name: value[some] for name, value in self.labels.items()}

    def gate(self, ours: Call) -> Row:
        """Our error, and the limit that PyTorch's sets."""
        exact, plain = self._expected
        errors = {"fastdiff": error_of(ours()[:GATED_SAMPLES], exact)}
        return {"dtype": kind_of(self.networks.dtype), **verdict(errors, plain, self.networks.dtype)}

    def race(self, row: Row, arms: dict[str, Callable[[], object]]) -> Row:
        """A row's times, where its gate is passed."""
        row |= {"peer": self.networks.peer_name}
        if row["gate"] != "passed":
            return row
        row |= summary(self.clock.race(arms, self.context.rounds))
        row["cpu_us"] = {
            name: 1e6 * self.clock.cpu_seconds(arm, 3) for name, arm in arms.items() if not name.endswith("in a graph")
        }
        flops = self.networks.flops * self.batch
        us = row["us"]["fastdiff"]
        floor = Ceilings.of(self.device, self.context.quick).floor(
            self.networks.weight_bytes, flops, self.networks.dtype
        )
        return row | {"teraflops": flops / us / 1e6, "floor_us": 1e6 * floor, "fraction_of_floor": 1e6 * floor / us}

    def warm(self) -> None:
        """Compile what both ways of ours need."""
        self.compiled()
        self.eager(self.networks.ours())()


@functools.cache
def networks_of(device: str, quick: bool, preset: str) -> Networks:
    """Built once in a process."""
    return Networks(torch.device(device), quick, preset)


def network(context: Context) -> Iterator[Task]:
    """Rows of each network and batch, as a graph and eager."""
    yield Task("ceilings", lambda: Ceilings.of(torch.device(context.device), context.quick).row())
    for preset, batch in QUICK_SIZES if context.quick else SIZES:
        make = functools.cache(partial(Evaluations, context, preset, batch))
        name = f"{preset}, batch {batch}"
        yield Task(f"{name}, compiled", partial(_compiled_row, make), 4.0, lambda make=make: make().warm())
        yield Task(f"{name}, eager", partial(_eager_row, make), 3.0)
    if networks_of(context.device, context.quick, HO).has_diffusers:
        yield Task("diffusers with fd.accelerate", partial(_accelerated, context), 3.0)


def _compiled_row(make: Callable[[], Evaluations]) -> Row:
    e = make()
    row = e.gate(e.compiled)
    peer = e.eager(e.networks.peer())
    arms: dict[str, Callable[[], object]] = {"fastdiff": e.compiled, "peer eager": peer}
    if row["gate"] == "passed" and e.context.on_gpu:
        arms |= {"fastdiff in a graph": captured(e.compiled), "peer in a graph": captured(peer)}
    row = e.race(row, arms)
    return row | {"predicted_us": e.predicted_us()}


def _eager_row(make: Callable[[], Evaluations]) -> Row:
    e = make()
    ours = e.eager(e.networks.ours())
    row = e.gate(ours)
    arms: dict[str, Callable[[], object]] = {"fastdiff": ours, "peer eager": e.eager(e.networks.peer())}
    if row["gate"] == "passed" and e.context.on_gpu:
        arms |= {"fastdiff in a graph": captured(ours)}
    return e.race(row, arms)


def _accelerated(context: Context) -> Row:
    e = Evaluations(context, HO, 2 if context.quick else 16)
    fast = e.networks.fresh_peer()
    try:
        report = fd.accelerate(fast, check=(e.x, e.t))
    except RuntimeError as error:
        return {"gate": "failed", "reason": str(error)}
    row: Row = {"gate": "passed", "errors": {"fastdiff": report.error}}
    return e.race(row, {"fastdiff": e.eager(fast), "peer eager": e.eager(e.networks.peer())})


def peers_16(context: Context) -> Iterator[Task]:
    """The compiled peer at batch 16."""
    yield from _peers(context, 16)


def peers_1(context: Context) -> Iterator[Task]:
    """The compiled peer at batch 1."""
    yield from _peers(context, 1)


def peers_256(context: Context) -> Iterator[Task]:
    """The compiled peer at batch 256."""
    yield from _peers(context, 256)


def _peers(context: Context, batch: int) -> Iterator[Task]:
    make = functools.cache(partial(Evaluations, context, HO, 2 if context.quick else batch))
    for mode in COMPILE_MODES:
        yield Task(f"{HO}, batch {batch}, peer by torch.compile, {mode}", partial(_peer_row, make, mode), 15.0)


def _peer_row(make: Callable[[], Evaluations], mode: str) -> Row:
    e = make()
    if e.context.quick:
        # A compiler would take most of a dry run's time.
        return not_run("torch.compile is left out of small runs")
    row = e.gate(e.compiled)
    torch._dynamo.reset()
    start = time.perf_counter()
    model: Any = torch.compile(e.networks.peer(), mode=mode)
    peer = e.eager(model)
    for _ in range(3):
        peer()
    torch.cuda.synchronize()
    row["compile_seconds"] = round(time.perf_counter() - start, 1)
    arms: dict[str, Callable[[], object]] = {"fastdiff": e.compiled, "peer compiled": peer}
    if mode != "max-autotune":
        # That one has graphs of its own.
        arms |= {"fastdiff in a graph": captured(e.compiled), "peer compiled, in a graph": captured(peer)}
    return e.race(row, arms)


def split(context: Context) -> Iterator[Task]:
    """Kernels by name, with calls and share."""
    for batch in (2,) if context.quick else SPLITS:
        yield Task(f"split, compiled, batch {batch}", partial(_split, context, batch, "compiled"), 2.0)
    batch = 2 if context.quick else 16
    yield Task(f"split, eager, batch {batch}", partial(_split, context, batch, "eager"), 2.0)


def _split(context: Context, batch: int, way: str) -> Row:
    from torch.profiler import ProfilerActivity, profile

    e = Evaluations(context, HO, batch)
    call = e.compiled if way == "compiled" else e.eager(e.networks.ours())
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if context.on_gpu else [])]
    for _ in range(3):
        call()
    e.clock.synchronize()
    with profile(activities=activities) as profiler:
        call()
        e.clock.synchronize()
    events: list[Any] = list(profiler.key_averages())
    if context.on_gpu:
        events = [e for e in events if str(e.device_type).endswith("CUDA")]
    kind = "self_device_time_total" if context.on_gpu else "self_cpu_time_total"
    times = sorted(((e.key, e.count, float(getattr(e, kind))) for e in events), key=lambda row: -row[2])
    total = sum(row[2] for row in times) or 1.0
    kernels = [
        {"kernel": key[:90], "calls": count, "us": us, "share": us / total} for key, count, us in times[:40] if us > 0
    ]
    return {"gate": "none", "total_us": total, "launches": sum(row[1] for row in times), "kernels": kernels}
