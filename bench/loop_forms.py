"""What a row of the sampling loop costs on a GPU beside its kernels: WHILE node, replay and unrolled graph.

`python bench/loop_forms.py` times rows of tiny kernels, as many as a network has, on the GPU at hand. `measure` times
any loop, an engine's captured row too.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastdiff.engine.cuda.graph import LoopGraph, Mode

MODES: tuple[Mode, ...] = ("while", "replay", "unrolled")
# Kernels of a row: few, Ho's network fused, and as PyTorch launches it.
CHAINS = (8, 157, 370)
ROWS, REPEATS = 50, 21


class Form(NamedTuple):
    """Times of a row in microseconds, over the repeats.

    Attributes:
        row: Median, from the launch to the end that the host sees.
        least, most: Of the repeats.
        cpu: Median of the calling thread's own time.
    """

    row: float
    least: float
    most: float
    cpu: float


def measure(
    build: Callable[[Mode], LoopGraph], evaluates: Sequence[bool], *, repeats: int = REPEATS, stream: int = 0
) -> dict[Mode, Form]:
    """Time whole runs of a table in each form, in turns.

    Args:
        build: Makes the loop; the unrolled one for all rows.
        evaluates: Of each row, whether it runs the network.
        repeats: Runs of each, after one that is not counted.
        stream: A cudaStream_t as a number.
    """
    rows = len(evaluates)
    times: dict[Mode, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    loops = {mode: build(mode) for mode in MODES}
    try:
        for _ in range(repeats + 1):
            for mode, loop in loops.items():
                flags = evaluates if mode == "replay" else None
                began, own = time.perf_counter(), time.thread_time()
                loop.launch(range(rows), num_rows=rows, stream=stream, evaluates=flags)
                ended = loop.wait()
                seconds, cpu = time.perf_counter() - began, time.thread_time() - own
                assert ended.next == rows, f"{mode}: stopped at row {ended.next} of {rows}"
                times[mode].append((1e6 * seconds / rows, 1e6 * cpu / rows))
    finally:
        for loop in loops.values():
            loop.close()
    found = {}
    for mode, runs in times.items():
        wall = [row for row, _ in runs[1:]]
        own_times = [cpu for _, cpu in runs[1:]]
        found[mode] = Form(statistics.median(wall), min(wall), max(wall), statistics.median(own_times))
    return found


def to_markdown(found: dict[str, dict[Mode, Form]]) -> str:
    """A table, a line for each chain of kernels and form."""
    lines = ["| row | form | us per row | least to most | CPU us per row |", "|---|---|---|---|---|"]
    for name, forms in found.items():
        for mode, form in forms.items():
            spread = f"{form.least:.1f} to {form.most:.1f}"
            lines.append(f"| {name} | {mode} | {form.row:.1f} | {spread} | {form.cpu:.1f} |")
    return "\n".join(lines)


def main() -> None:
    import torch

    from fastdiff.engine.cuda.library import CONTROL_WIDTH

    if not torch.cuda.is_available():
        sys.exit("this needs a CUDA device")
    control = torch.zeros(CONTROL_WIDTH, dtype=torch.int64, device="cuda")
    x = torch.zeros(1024, device="cuda")
    found = {}
    for kernels in CHAINS:
        x.add_(1)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(kernels):
                x.add_(1)

        def build(mode: Mode, graph: torch.cuda.CUDAGraph = graph) -> LoopGraph:
            return LoopGraph(
                graph.raw_cuda_graph(),
                control=control.data_ptr(),
                mode=mode,
                unroll=range(ROWS) if mode == "unrolled" else None,
                owners=[graph],
            )

        found[f"{kernels} kernels"] = measure(build, [True] * ROWS)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {ROWS} rows, {REPEATS} runs of each, in turns\n")
    print(to_markdown(found))


if __name__ == "__main__":
    main()
