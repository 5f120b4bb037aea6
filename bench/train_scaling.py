"""Training in two processes of one thread each against one process of one thread, in images per second.

    python bench/train_scaling.py [--rounds 5] [--steps 3] [--only digits]

Writes bench/results/train_scaling.json and .md. The batch of a step is the same in both, and two take half of it each,
as with `torchrun --nproc-per-node 2 -m fastdiff train --threads 1`. The arms take turns, in processes of their own; a
round's figure is the median of its steps. The larger step of the Ho network is computed in micro-batches.
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
from pathlib import Path
from typing import Any

from harness import machine

RESULTS = Path(__file__).parent / "results" / "train_scaling"
# Network, images of a step, images at a time, and steps that are measured for one of the slowest. AdamW, the average
# and the sum of gradients are not shared out, and weigh less the more images a step has.
CASES: dict[str, tuple[str, int, int | None, int]] = {
    "ho-cifar10": ("ho-cifar10", 16, None, 2),
    "ho-cifar10, 64 images": ("ho-cifar10", 64, 8, 1),
    "digits": ("digits", 128, None, 20),
}
# Not counted: memory is asked for, and buckets are made.
_FIRST = 2


def train(rank: int, size: int, port: int, case: str, steps: int, folder: str, results: Any) -> None:
    """Take some steps as one of the processes; the first tells how long each took, in seconds."""
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
    times: list[float] = []
    with joined(Place(rank, size, rank, size), "cpu", 300.0):
        trainer = fd.Trainer(unet, diffusion, data, config, folder)
        trainer.run(until=_FIRST + steps, on_step=lambda step: times.append(time.perf_counter()))
    if rank == 0:
        results.put([later - earlier for earlier, later in zip(times[_FIRST - 1 :], times[_FIRST:], strict=False)])


def measured(name: str, size: int, steps: int) -> float:
    """Images per second of so many processes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        processes = [
            context.Process(target=train, args=(rank, size, port, name, steps, folder, results)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        seconds = results.get(timeout=900)
        for process in processes:
            process.join()
    return CASES[name][1] / statistics.median(seconds)


def main() -> None:
    """Race one process against two and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of the slowest case; others take more")
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    about = machine()
    found: dict[str, dict[str, Any]] = {}
    for name, (_, batch, _, factor) in CASES.items():
        if options.only not in (None, name):
            continue
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for size, values in speeds.items():
                values.append(measured(name, size, options.steps * factor))
        one, two = (statistics.median(values) for values in speeds.values())
        ratios = [b / a for a, b in zip(*speeds.values(), strict=True)]
        found[name] = {"batch": batch, "images_per_second": speeds, "one": one, "two": two}
        found[name]["times_faster"] = statistics.median(ratios)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = f"{about['processor']}, {about['isa']}, load {about['load']}, commit {about['commit']}; {versions}.\n\n"
    text += "Images per second in training, medians of interleaved rounds, one thread a process:\n\n"
    text += "| network | images of a step | one process | two processes | times faster |\n|---|---|---|---|---|\n"
    for name, row in found.items():
        text += f"| {name} | {row['batch']} | {row['one']:.1f} | {row['two']:.1f} | {row['times_faster']:.2f}x |\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps({"machine": about, "cases": found}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
