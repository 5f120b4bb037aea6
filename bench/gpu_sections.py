"""The sections of the GPU suite: in which order, for how long at most, and where their code is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Section(NamedTuple):
    """A part of the suite, which runs in a process of its own.

    Attributes:
        name: As given to --only.
        where: Module and function that gives its tasks (`gpu_tasks.Task`).
        seconds: It is killed after these.
        about: What it does.
        grows: It may take all the time that is left, and be cut off: its rows are worth having, the rest is not missed.
    """

    name: str
    where: str
    seconds: int
    about: str
    grows: bool = False


SECTIONS = (
    Section("build", "gpu_checks:build", 30, "the sampling loop's library by nvcc, smoke's kernels by Triton"),
    Section("smoke", "gpu_smoke:smoke", 15, "one launch per kernel family, held to the reference; the card's ceilings"),
    Section("tests", "gpu_checks:tests", 50, "the tests in tests/gpu"),
    Section("kernels-bf16", "gpu_kernels:bf16", 50, "each op against PyTorch's own in bfloat16"),
    Section("kernels-fp32", "gpu_kernels:fp32", 30, "the same in float32, with TensorFloat-32 and without"),
    Section("network", "gpu_evaluations:network", 60, "one evaluation, eager and as a graph, against the peer's"),
    Section("split", "gpu_evaluations:split", 15, "where an evaluation's time goes, kernel by kernel"),
    Section("loop", "gpu_sampling:loop", 20, "the sampling loop: eager, WHILE, replayed, unrolled; CPU time, jitter"),
    Section("training", "gpu_training:training", 40, "a training step and its parts"),
    Section("images", "gpu_sampling:images", 20, "images per second of DDPM, DDIM and UniPC by batch"),
    Section("interpreter", "gpu_checks:interpreter", 90, "the tests of tests/kernels/interpreter, compiled"),
    Section("sanitizer", "gpu_checks:sanitizer", 20, "memcheck of compute-sanitizer on smoke's launches and a loop"),
    Section("peers-16", "gpu_evaluations:peers_16", 30, "the peer by torch.compile, max-autotune, at batch 16", True),
    Section("peers-1", "gpu_evaluations:peers_1", 0, "the same at batch 1, where time is left", True),
    Section("peers-256", "gpu_evaluations:peers_256", 0, "the same at batch 256, where time is left", True),
    Section("peers-training", "gpu_training:peers", 0, "the compiled peer's training step, where time is left", True),
)
# For all of them; eight minutes with what lies between.
BUDGET = 474
# A section is not begun with less than this left, or less than its own limit where that is shorter.
LEAST_SECONDS = 10
LEAST_SECONDS_TO_GROW = 30
# On the CPU in small shapes, where times mean nothing and everything is slower.
QUICK_SECONDS = 280
# Of a section of stand-ins, and of one that is to hang.
DRY_SECONDS, DRY_SECONDS_TO_HANG = 30, 3

NAMES = tuple(section.name for section in SECTIONS)
assert sum(section.seconds for section in SECTIONS) <= BUDGET
