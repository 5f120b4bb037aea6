"""The sampling loop in the GPU suite: eager, as one launch, replayed, unrolled; and images per second.

A plain loop in PyTorch is what it is held to. Its state is float32, as fastdiff's is: in 16 bits the state's own
roundings, step for step, would be far above what is compared here.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_evaluations import networks_of
from gpu_measure import error_of, kind_of, precision, summary, verdict
from gpu_networks import ADM, HO, Networks, diffusion, noise, small_table
from gpu_tasks import Context, Row, Task
from torch import Tensor

import fastdiff as fd
from fastdiff.ops.table_state import TableState

MODES = ("while", "replay", "unrolled")
# Batch, rows of a table for graphs, and for the eager loop, whose rows take up to thirty times as long.
LOOPS = ((16, 200, 20), (1, 200, 20), (256, 20, 10))
QUICK_LOOPS = ((2, 3, 3),)
GATED_BATCH, GATED_ROWS = 16, 10
RUNS = 5
# Between two looks at the progress, for the jitter.
LOOK_SECONDS = 2e-5
# Network, batch, and what is sampled: of DDPM's thousand rows, which are all alike, the first ones only.
IMAGES = (
    (HO, 256, ("unipc-10", "ddim-50", "ddpm-1000")),
    (HO, 16, ("ddim-50", "unipc-10", "ddpm-1000")),
    (HO, 1, ("ddim-50", "unipc-10", "ddpm-1000")),
    (HO, 1024, ("unipc-10", "ddim-50", "ddpm-1000")),
    (ADM, 64, ("unipc-10", "ddim-50", "ddpm-1000")),
)
# Of fewer rows, one run each.
SHORT_FROM = 64
QUICK_IMAGES = ((HO, 2, ("unipc-10", "ddim-50")),)


class Sampling:
    """Runs of a network's table from one noise."""

    def __init__(self, networks: Networks, batch: int, table: Any) -> None:
        self.networks, self.table, self.batch = networks, table, batch
        self.device = networks.device
        self.on_gpu = networks.device.type == "cuda"
        self.start = noise(self.networks, batch)
        self.labels = self.networks.labels(batch)

    def sample(self, runner: str, dtype: torch.dtype | None = None) -> Tensor:
        """By `fd.sample`."""
        runner_or: Any = runner if self.on_gpu or runner != "graph" else "native"
        return fd.sample(
            self.networks.ours(dtype), self.table, shape=tuple(self.start.shape), x_init=self.start, runner=runner_or,
            device=self.device, progress=False, model_kwargs=self.labels,
        )  # fmt: skip

    def plain(self, network: Any, dtype: torch.dtype) -> Tensor:
        """By a loop in PyTorch, of a table of DDIM's kind: no noise, no history."""
        state = self.start
        with torch.inference_mode():
            for r in range(len(self.table)):
                k = {name: float(self.table[name][r]) for name in ("t", "ci", "px", "pm", "cx", "c0")}
                t = torch.full((self.batch,), int(k["t"]), device=self.device)
                m = self.networks.call(network, (k["ci"] * state).to(dtype), t).float()
                state = k["cx"] * state + k["c0"] * (k["px"] * state + k["pm"] * m).clamp(-1, 1)
        return state

    def as_a_loop(self, mode: str) -> tuple[Callable[[], Tensor], Loops]:
        """By csrc/cuda in one of its modes, and who builds its loops."""
        from fastdiff.engine.cuda.loop import run_table

        network = fd.compile(self.networks.ours())
        loops = Loops(self.device, mode, len(self.table))
        x, ids = self.start.clone(), torch.arange(self.batch, device=self.device)

        @torch.no_grad()
        def run() -> Tensor:
            x.copy_(self.start)
            run_table(
                network, TableState(self.table), x, range(len(self.table)), device=loops, ids=ids, seed=0,
                model_kwargs=self.labels, input_dtype=self.networks.dtype, advance=lambda count: None,
                stops=frozenset(), on_stop=lambda row, prediction: None,
            )  # fmt: skip
            return x

        return run, loops


class Loops:
    """A `GraphDevice` whose loops are of one mode, and who keeps the last one in sight.

    Args:
        device: A GPU.
        mode: See `fastdiff.engine.cuda.graph.LoopGraph`.
        rows: Of the table, which "unrolled" has copies of.
    """

    def __init__(self, device: torch.device, mode: str, rows: int) -> None:
        from fastdiff.engine.cuda.device import Gpu

        self.mode, self.rows, self.index = mode, rows, device.index or 0
        self.gpu: Any = Gpu(torch.device("cuda", self.index), None if mode == "unrolled" else mode)  # type: ignore[arg-type]
        self.last: Any = None

    def recorder(self) -> Any:
        """See `GraphDevice`."""
        return self.gpu.recorder()

    def loop(self, network: Any, step: Any, rows: Tensor, control: Tensor, recorder: Any, every_row: bool) -> Any:
        """See `GraphDevice`."""
        from fastdiff.engine.cuda.graph import LoopGraph

        if self.mode != "unrolled":
            self.last = self.gpu.loop(network, step, rows, control, recorder, every_row)
        else:
            self.last = LoopGraph(
                step.graph, network=network.graph, control=control.data_ptr(), rows=rows.data_ptr(),
                every_row=every_row, mode="unrolled", unroll=range(self.rows), evaluates=[True] * self.rows,
                device=self.index, stream=recorder.stream, owners=(network, step, rows, control),
            )  # fmt: skip
        return self.last


def loop(context: Context) -> Iterator[Task]:
    """A row per mode and batch: microseconds of a table's row, of the CPU, from row to row."""
    for batch, rows, eager_rows in QUICK_LOOPS if context.quick else LOOPS:
        name = f"{HO}, batch {batch}"
        make, make_eager = (
            functools.cache(
                lambda batch=batch, rows=count: Sampling(
                    networks_of(context.device, context.quick, HO), batch, small_table(rows)
                )
            )
            for count in (rows, eager_rows)
        )
        for mode in MODES if context.on_gpu else ():
            warm = partial(_warm, make) if mode == MODES[0] else None
            yield Task(f"{name}, {mode}", partial(_loop_row, context, make, mode), 1.0, warm)
        way = "graph" if context.on_gpu else "engine"
        yield Task(f"{name}, fd.sample by {way}", partial(_sample_row, context, make, "graph"), 1.0)
        yield Task(f"{name}, fd.sample eager", partial(_sample_row, context, make_eager, "eager"), 1.0)


def _warm(make: Callable[[], Sampling]) -> None:
    make().sample("graph")


@functools.cache
def _expected(device: str, quick: bool) -> tuple[Sampling, Tensor, float]:
    """What the gates hold a run to: the plain loop by a float32 network, and the error of that by ours in 16 bits."""
    batch, rows = QUICK_LOOPS[0][:2] if quick else (GATED_BATCH, GATED_ROWS)
    gated = Sampling(networks_of(device, quick, HO), batch, small_table(rows))
    with precision(False):
        exact = gated.plain(gated.networks.ours(torch.float32), torch.float32)
    return gated, exact, error_of(gated.plain(gated.networks.ours(), gated.networks.dtype), exact)


def _gate(found: Tensor, context: Context) -> Row:
    gated, exact, plain = _expected(context.device, context.quick)
    row = verdict({"fastdiff": error_of(found, exact)}, plain, gated.networks.dtype)
    return row | {"dtype": kind_of(gated.networks.dtype)}


def _sample_row(context: Context, make: Callable[[], Sampling], runner: str) -> Row:
    gated = _expected(context.device, context.quick)[0]
    row = _gate(gated.sample(runner), context)
    sampling = make()
    return row if row["gate"] != "passed" else row | _times(sampling, lambda: sampling.sample(runner))


def _loop_row(context: Context, make: Callable[[], Sampling], mode: str) -> Row:
    found = _expected(context.device, context.quick)[0].as_a_loop(mode)[0]().clone()
    row = _gate(found, context)
    # The modes run the same kernels: what differs is the order of sums within them, if anything.
    first = _first_images.setdefault(context.device, found)
    row["difference_from_first_mode"] = error_of(found, first)
    if row["gate"] != "passed":
        return row
    run, loops = make().as_a_loop(mode)
    begun = time.perf_counter()
    run()
    row["parts_us"] = {"recorded and first run": 1e6 * (time.perf_counter() - begun)}
    row |= _times(make(), run)
    if mode != "replay":
        row["jitter_us"] = _jitter(run, loops)
    return row


_first_images: dict[str, Tensor] = {}


def _times(sampling: Sampling, run: Callable[[], object]) -> Row:
    """Microseconds per row of the table: of the wall, and of all the process's threads."""
    run()
    walls, cpus = [], []
    runs = 2 if sampling.networks.quick else RUNS
    for _ in range(runs):
        if sampling.on_gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if sampling.on_gpu:
            torch.cuda.synchronize()
        walls.append((time.perf_counter() - wall) / len(sampling.table))
        cpus.append((time.process_time() - cpu) / len(sampling.table))
    spread = {f"run to run, of {runs}, least to most": 1e6 * (max(walls) - min(walls))}
    return summary({"fastdiff": walls}) | {
        "cpu_us": {"fastdiff": 1e6 * statistics.median(cpus)}, "spread_us": spread, "times_faster_than": {},
        "note": f"per row, of {len(sampling.table)}",
    }  # fmt: skip


def _jitter(run: Callable[[], object], loops: Loops) -> dict[str, float]:
    """Microseconds from the end of a row to that of the next, as the progress in mapped memory shows it."""
    seen: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.setdefault(loops.last.progress().next, time.perf_counter())
            time.sleep(LOOK_SECONDS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    ends = [seen[row] for row in sorted(seen)]
    # The first holds the launch.
    gaps = sorted(1e6 * (b - a) for a, b in itertools.pairwise(ends[1:]))
    if not gaps:
        return {"rows seen": float(len(ends))}
    return {"median": statistics.median(gaps), "most": gaps[-1], "rows seen": float(len(ends))}


def table_of(sampler: str, learned: bool, short: bool) -> tuple[Any, int]:
    """A table, and the number of rows that it stands for; of a long one the first so many rows, which are all alike."""
    d = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="learned_range") if learned else diffusion()
    if sampler == "ddpm-1000":
        return fd.samplers.ddpm(d, 20), 1000
    if sampler == "unipc-10":
        return fd.samplers.unipc(d, 10), 10
    return fd.samplers.ddim(d, 10 if short else 50, spacing="leading"), 50


def images(context: Context) -> Iterator[Task]:
    """Images per second."""
    for preset, batch, samplers in QUICK_IMAGES if context.quick else IMAGES:
        for sampler in samplers:
            run = partial(_images_row, context, preset, batch, sampler)
            yield Task(f"{preset}, batch {batch}, {sampler}", run, 2.0, run if sampler == "unipc-10" else None)


def _images_row(context: Context, preset: str, batch: int, sampler: str) -> Row:
    networks = networks_of(context.device, context.quick, preset)
    short = context.quick or batch >= SHORT_FROM
    table, rows = table_of(sampler, learned=networks.config.out_channels == 6, short=short)
    sampling = Sampling(networks, batch, table)
    if not bool(sampling.sample("graph").isfinite().all()):
        return {"gate": "failed", "reason": "not finite"}
    arms: dict[str, Callable[[], Tensor]] = {
        "fastdiff": partial(sampling.sample, "graph"),
        "fastdiff eager": partial(sampling.sample, "eager"),
    }
    row: Row = {"gate": "passed", "dtype": kind_of(networks.dtype)}
    if sampler == "ddim-50" and preset == HO:
        arms["peer eager"] = partial(sampling.plain, networks.peer(), networks.dtype)
        row["peer"] = f"{networks.peer_name}, in a plain loop without a scheduler's cost"
        arms["peer eager"]()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    # Long runs are taken once: they are medians of many rows themselves.
    for _ in range(1 if short else 3):
        for name, run in arms.items():
            begun = time.perf_counter()
            run().sum().item()
            seconds[name].append(time.perf_counter() - begun)
    row |= summary(seconds)
    row["images_per_second"] = batch * len(table) / rows / statistics.median(seconds["fastdiff"])
    row["note"] = f"of the {len(table)} rows that were run"
    if rows != len(table):
        row["note"] += f"; images/s extrapolated from {len(table)} rows to {rows}"
    return row
