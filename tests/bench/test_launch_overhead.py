"""bench/launch_overhead.py: every call goes a GPU's way to the driver's door, and there alone is stopped."""

import pytest

pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
import launch_overhead
from triton.compiler import CompiledKernel

# Launches of each call.
LAUNCHES = {"norm, no_grad": 1, "norm, forward and backward": 2 * launch_overhead.CHAIN, "step": 1, "diffuse": 1}


def test_calls_end_at_the_driver(monkeypatch):
    launched = []
    with launch_overhead.stubbed():
        stub = CompiledKernel._init_handles

        def initialise(kernel):
            stub(kernel)
            kernel._run = lambda *arguments: launched.append(kernel.name)

        monkeypatch.setattr(CompiledKernel, "_init_handles", initialise)
        for name, call in launch_overhead.calls().items():
            # Compiled by the first, kept for the second.
            for _ in range(2):
                launched.clear()
                call()
                assert len(launched) == LAUNCHES.get(name, 0), name


def test_goals_are_of_calls_that_are_timed():
    found = launch_overhead.measure(rounds=2, number=8)
    assert launch_overhead.GOALS.keys() < found.keys()
    assert all(times["least_us"] > 0 for times in found.values())
