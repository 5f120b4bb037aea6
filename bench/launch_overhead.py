"""Microseconds of Python in a call of an op on a GPU, on a machine with none.

    python bench/launch_overhead.py

CPU tensors stand in for a GPU's: what asks for the device is told yes, and the call goes the whole way of an eager one:
checks, the choice of an implementation, autograd, the launcher with its allocations, Triton's choice of the compiled
kernel, which is compiled for sm_90. There, at Triton's boundary to the driver (`CompiledKernel.run`), a stub takes the
arguments and does nothing. So the launch itself (Triton's launcher in C and the driver, some 3 to 6 us), the driver's
answers about device and stream, and what a GPU's allocator takes beyond the CPU's are not in these figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from harness import machine
from kernel_report import TARGETS, AbsentDevice
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from fastdiff import Diffusion, NoiseSchedule, ops, samplers
from fastdiff.ops import _dispatch

RESULTS = Path(__file__).parent / "results" / "launch_overhead.json"
# Microseconds, at most: the goals.
GOALS = {"norm, no_grad": 25, "norm, forward and backward": 120, "step": 20}
# Norms in a row, so that starting autograd's engine, once for a whole network, counts for little.
CHAIN = 8


# Mocks would be counted with the rest.
def _yes(x: object) -> bool:
    return True


def _no(*_: object) -> bool:
    return False


@contextmanager
def stubbed() -> Iterator[None]:
    """Let CPU tensors take a GPU's way, up to the driver."""

    def initialise(kernel: CompiledKernel) -> None:
        kernel._run = lambda *_: None

    with (
        mock.patch.object(driver, "_active", AbsentDevice(TARGETS["sm_90"])),
        mock.patch.object(CompiledKernel, "_init_handles", initialise),
        mock.patch.object(_dispatch, "on_gpu", _yes),
        mock.patch.object(_dispatch, "on_cpu", _no),
        mock.patch.object(ops._group_norm_act, "has_extension", _no),
    ):
        yield


def calls() -> dict[str, Callable[[], object]]:
    """The calls that are timed: a norm of Ho's network at 32x32 and batch 16, a step and a noising of 3x32x32."""
    x = torch.randn(16, 128, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)
    weight, bias = torch.ones(128), torch.zeros(128)
    parameters = [torch.nn.Parameter(v.clone()) for _ in range(CHAIN) for v in (weight, bias)]
    grad_y, wanted = torch.randn_like(x), x.clone().requires_grad_()
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    table = samplers.ddpm(diffusion, 10)
    state, m = torch.randn(16, 3, 32, 32), torch.randn(16, 3, 32, 32)
    rows, ids, row, out = ops.table_rows(table), torch.arange(16), torch.tensor([3]), torch.empty_like(state)
    one = torch.zeros(1)
    noising, t = torch.tensor(diffusion.noising_table(), dtype=torch.float32), torch.arange(16)

    def norm() -> object:
        with torch.no_grad():
            return ops.group_norm_act(x, weight, bias, 32)

    def both() -> object:
        y = wanted
        for i in range(0, 2 * CHAIN, 2):
            y = ops.group_norm_act(y, parameters[i], parameters[i + 1], 32)
        return torch.autograd.grad(y, (wanted, *parameters), grad_y)

    return {
        "norm, no_grad": norm,
        "norm, forward and backward": both,
        "step": lambda: ops.step(state, m, rows, row, sample_ids=ids, out=out),
        # What PyTorch's own least op takes here, to compare machines and their load by.
        "torch.add of one number": lambda: torch.add(one, one),
        "diffuse": lambda: ops.diffuse(state, t, noising, sample_ids=ids, row=row),
    }


def microseconds(call: Callable[[], object], rounds: int, number: int) -> list[float]:
    """Processor time per call, of rounds of `number` calls each."""
    for _ in range(number):
        call()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(number):
            call()
        times.append(1e6 * (time.process_time() - start) / number)
    return times


def measure(rounds: int = 300, number: int = 16) -> dict[str, dict[str, float]]:
    """Of every call the least and the median; a norm's way there and back as one of several in a row."""
    torch.set_num_threads(1)
    found = {}
    with stubbed():
        for name, call in calls().items():
            share = CHAIN if name.endswith("backward") else 1
            times = microseconds(call, rounds, number // share)
            found[name] = {
                "least_us": round(min(times) / share, 1),
                "median_us": round(statistics.median(times) / share, 1),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = measure()
    for name, times in found.items():
        goal = f", goal {GOALS[name]}" if name in GOALS else ""
        print(f"{name:30s} least {times['least_us']:7.1f} us, median {times['median_us']:7.1f} us{goal}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "microseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
