"""Training in two processes of one thread each against one process of one thread, in images per second.

    python bench/train_scaling.py CASE [--rounds 8]

Writes the case into bench/results/train_scaling.json and .md, beside the others that are there; a call ends in under
150 seconds. The batch of a step is the same in one process and in two that train together, which take half of it each,
as with `torchrun --nproc-per-node 2 -m fastdiff train --threads 1`. Two processes that train apart from each other,
each the whole batch, say what two processors of this machine are worth: caches, memory and clock are shared. The arms
are there all the time and take turns; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness import machine

RESULTS = Path(__file__).parent / "results" / "train_scaling"
# Network, images of a step, images at a time, and steps that are measured at a turn.
CASES: dict[str, tuple[str, int, int | None, int]] = {
    "ho-cifar10": ("ho-cifar10", 16, None, 1),
    "ho-cifar10, 32 images": ("ho-cifar10", 32, 8, 1),
    "digits": ("digits", 128, None, 10),
}
# Processes of an arm, and whether they train together.
ARMS = {"one": (1, True), "two": (2, True), "two apart": (2, False)}
# Turns that are not counted: memory is asked for.
_FIRST = 1


def train(pipe: Connection, rank: int, size: int, port: int, case: str, folder: str) -> None:
    """Take steps when told to, as one of the processes, and tell how long each took, in seconds."""
    import torch

    import fastdiff as fd
    from fastdiff.files.data import DataScaling, ImageData
    from fastdiff.training.launch import Place, joined

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, batch, at_a_time, _ = CASES[case]
    unet = fd.UNet(fd.UNetConfig.preset(name))
    levels = 17 if name == "digits" else 256
    shape = (unet.config.in_channels, unet.config.image_size, unet.config.image_size)
    images = torch.randint(0, levels, (512, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageData(images, None, DataScaling(levels), "random", None)
    variance = "learned_range" if unet.config.out_channels != unet.config.in_channels else "fixed_large"
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance=variance)
    config = fd.TrainConfig(
        steps=10_000,
        batch_size=batch,
        micro_batch=at_a_time,
        warmup_steps=0,
        loss="hybrid" if "learned" in variance else "simple",
    )
    began = 0.0
    left = 0

    def on_step(step: int) -> None:
        nonlocal began, left
        if left:
            pipe.send(time.perf_counter() - began)
            left -= 1
        if not left:
            left = pipe.recv()
            if not left:
                raise KeyboardInterrupt
        began = time.perf_counter()

    try:
        with joined(Place(rank, size, rank, size), "cpu", 300.0):
            fd.Trainer(unet, diffusion, data, config, folder).run(on_step=on_step)
    except KeyboardInterrupt:
        pipe.send(None)


def race(case: str, rounds: int, folder: str) -> dict[str, list[float]]:
    """Seconds of the steps of each arm; of two processes, those of the slower."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    processes = []
    for arm, (num, together) in ARMS.items():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(num):
            here, there = context.Pipe()
            place = (rank, num) if together else (0, 1)
            run = f"{folder}/{arm}" if together else f"{folder}/{arm} {rank}"
            processes.append(context.Process(target=train, args=(there, *place, port, case, run)))
            processes[-1].start()
            pipes[arm].append(here)
    steps = CASES[case][3]
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(_FIRST + rounds):
        for arm, theirs in pipes.items():
            for pipe in theirs:
                pipe.send(steps)
            found = [max(pipe.recv() for pipe in theirs) for _ in range(steps)]
            seconds[arm] += found if turn >= _FIRST else []
    for pipe in (pipe for theirs in pipes.values() for pipe in theirs):
        pipe.send(0)
    for process in processes:
        process.join()
    return seconds


def figures(case: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Images per second of the arms, and how many times as many as one process two take."""
    batch = CASES[case][1]
    median = {arm: statistics.median(values) for arm, values in seconds.items()}
    return {
        "batch": batch,
        "one": batch / median["one"],
        "two": batch / median["two"],
        "times_faster": median["one"] / median["two"],
        "two_apart": 2 * median["one"] / median["two apart"],
        "milliseconds": {arm: [round(1e3 * value, 2) for value in values] for arm, values in seconds.items()},
    }


def write(out: Path, found: dict[str, Any]) -> str:
    """Write all cases, as JSON and as a table, which is given back."""
    text = "Images per second in training, medians of steps in turns, one thread a process. Two apart: how many times\n"
    text += "the images of one two processes take that train each for itself, the most that two together could.\n\n"
    text += "| network | images of a step | one process | two together | times faster | two apart |\n"
    text += "|---|---|---|---|---|---|\n"
    for name in (name for name in CASES if name in found):
        row = found[name]
        text += f"| {name} | {row['batch']} | {row['one']:.1f} | {row['two']:.1f} | {row['times_faster']:.2f}x "
        text += f"| {row['two_apart']:.2f}x |\n"
    for name in (name for name in CASES if name in found):
        about = found[name]["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        text += f"\n{name}: {about['processor']}, {about['isa']}, load {about['load']}, commit {about['commit']}; "
        text += f"{versions}.\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(text)
    return text


def main() -> None:
    """Race the arms of a case and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        seconds = race(options.case, options.rounds, folder)
    path = options.out.with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {}
    found[options.case] = figures(options.case, seconds) | {"machine": about}
    print(write(options.out, found))


if __name__ == "__main__":
    main()
