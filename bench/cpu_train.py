"""Training steps on the CPU against what one trains with otherwise, interleaved: `make bench-cpu` runs it too.

    python bench/cpu_train.py [--batch 16] [--rounds 9] [--digits-rounds 60]

Writes bench/results/cpu_train.json and .md. All arms draw noise and times, noise uint8 images, evaluate the network,
take the mean squared error and its gradient, clip the gradient and take a step of AdamW. Ours is the Trainer's step.

The network of Ho et al., batches of 16: ours also keeps the moving average of the weights; diffusers' is its
UNet2DModel with the same dropout, channels_last, with DDPMScheduler.add_noise and fused AdamW, as its training example
has it. The digits', batches of 64: against the same network as one writes it in PyTorch, with a moving average as well
(bench/plain_unet.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_networks import DIFFUSERS_HO
from harness import machine, race
from plain_unet import plain_step

import fastdiff as fd
from fastdiff.files.data import DataScaling, ImageData
from fastdiff.nets.dropout import keyed_dropout
from fastdiff.nets.recipes import RECIPES

RESULTS = Path(__file__).parent / "results" / "cpu_train"
DIGITS = fd.UNetConfig.preset("digits", **RECIPES["digits"]["unet"])
Step = Callable[[], object]


def ours(images: torch.Tensor, levels: int, network: fd.UNetConfig, batch: int, folder: str, **settings: Any) -> Step:
    """A step of the Trainer."""
    torch.manual_seed(0)
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
    config = fd.TrainConfig(steps=10_000, batch_size=batch, **settings)
    data = ImageData(images, None, DataScaling(levels), "random", None)
    trainer = fd.Trainer(fd.UNet(network), diffusion, data, config, folder)
    trainer.unet.train()
    trainer._draws = keyed_dropout(trainer.unet)
    steps = itertools.count()
    return lambda: trainer._train_step(next(steps))


def theirs(images: torch.Tensor, batch: int) -> Step:
    """The same with diffusers, without the moving average."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**DIFFUSERS_HO, dropout=0.1).train().to(memory_format=torch.channels_last)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        x0 = images[torch.randint(len(images), (batch,))].float() / 127.5 - 1
        x0 = x0.contiguous(memory_format=torch.channels_last)
        noise, t = torch.randn_like(x0), torch.randint(1000, (batch,))
        optimizer.zero_grad()
        F.mse_loss(unet(scheduler.add_noise(x0, noise, t), t).sample, noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()

    return step


def measure(network: str, batch: int, arms: dict[str, Step], rounds: int, warmup: int) -> dict[str, Any]:
    """Times of a step, least and median, and how many times as fast the first arm is as the second."""
    seconds = race(arms, rounds, warmup=warmup)
    subject, peer = arms
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    least = {name: 1e3 * min(values) for name, values in seconds.items()}
    return {
        "network": network,
        "batch": batch,
        "peer": peer,
        "ms": median,
        "least_ms": least,
        "quartiles_ms": {name: [1e3 * q for q in statistics.quantiles(v, n=4)[::2]] for name, v in seconds.items()},
        "times_faster": median[peer] / median[subject],
        "times_faster_at_least_times": least[peer] / least[subject],
    }


def to_markdown(about: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """A line for each race."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = f"{about['processor']}, {about['threads']} threads, {about['isa']}, load {about['load']}, "
    text += f"commit {about['commit']}; {versions}.\n\n"
    text += "Training steps, interleaved; medians, and least times in brackets:\n\n"
    text += "| network | batch | fastdiff, ms | images/s | peer | ms | times faster |\n|---|---|---|---|---|---|---|\n"
    for race_of in found:
        median, least, peer = race_of["ms"], race_of["least_ms"], race_of["peer"]
        text += f"| {race_of['network']} | {race_of['batch']} | {median['fastdiff']:.4g} ({least['fastdiff']:.4g}) "
        text += (
            f"| {1e3 * race_of['batch'] / median['fastdiff']:.1f} | {peer} | {median[peer]:.4g} ({least[peer]:.4g}) "
        )
        text += f"| {race_of['times_faster']:.2f}x ({race_of['times_faster_at_least_times']:.2f}x) |\n"
    return text


def main() -> None:
    """Race them and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=16, help="of the network of Ho et al.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--digits-rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    about, found = machine(), []
    digits = torch.randint(0, 17, (1797, 1, 8, 8), dtype=torch.uint8)
    settings = {"learning_rate": 1e-3, "betas": (0.9, 0.99), "ema_decay": 0.995, "flip": False}
    with tempfile.TemporaryDirectory() as folder:
        arms = {"fastdiff": ours(digits, 17, DIGITS, 64, folder, **settings)}
        arms["PyTorch"] = plain_step(digits, 64, DIGITS, 17)
        found.append(measure("digits", 64, arms, options.digits_rounds, warmup=5))
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        ho = fd.UNetConfig.preset("ho-cifar10")
        arms = {"fastdiff": ours(images, 256, ho, options.batch, folder, learning_rate=2e-4)}
        arms["diffusers"] = theirs(images, options.batch)
        found.append(measure("ho-cifar10", options.batch, arms, options.rounds, warmup=2))
    text = to_markdown(about, found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps({"machine": about, "races": found}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
