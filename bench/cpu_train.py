"""A training step of the Ho CIFAR-10 network on the CPU against diffusers, interleaved: `make bench-cpu` runs it too.

    python bench/cpu_train.py [--batch 16] [--rounds 9]

Writes bench/results/cpu_train.json and .md. Both arms draw noise and times, noise uint8 images, evaluate the network
with its dropout, take the mean squared error and its gradient, clip the gradient and take a step of fused AdamW. Ours
is the Trainer's step and also keeps the moving average of the weights; diffusers' is its UNet2DModel, channels_last,
with DDPMScheduler.add_noise, as its training example has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from cpu_unet import DIFFUSERS_HO
from harness import machine, race

import fastdiff as fd
from fastdiff.files.data import DataScaling, ImageData

RESULTS = Path(__file__).parent / "results" / "cpu_train"


def ours(images: torch.Tensor, batch: int, folder: str) -> Callable[[], object]:
    """A step of the Trainer."""
    torch.manual_seed(0)
    unet = fd.UNet(fd.UNetConfig.preset("ho-cifar10"))
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
    config = fd.TrainConfig(steps=10_000, batch_size=batch, learning_rate=2e-4)
    data = ImageData(images, None, DataScaling(256), "random", None)
    trainer = fd.Trainer(unet, diffusion, data, config, folder)
    unet.train()
    steps = iter(range(10_000))
    return lambda: trainer._train_step(next(steps))


def theirs(images: torch.Tensor, batch: int) -> Callable[[], object]:
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


def main() -> None:
    """Race the two and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    about = machine()
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        arms = {"fastdiff": ours(images, options.batch, folder), "diffusers": theirs(images, options.batch)}
        seconds = race(arms, options.rounds, warmup=2)
    found = {
        "batch": options.batch,
        "ms": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "quartiles_ms": {name: [1e3 * q for q in statistics.quantiles(v, n=4)[::2]] for name, v in seconds.items()},
    }
    found["times_faster"] = found["ms"]["diffusers"] / found["ms"]["fastdiff"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = f"{about['processor']}, {about['threads']} threads, {about['isa']}, load {about['load']}, "
    text += f"commit {about['commit']}; {versions}.\n\n"
    text += "A training step of the Ho CIFAR-10 network, medians of interleaved steps:\n\n"
    text += "| batch | fastdiff, ms | images/s | diffusers, ms | times faster |\n|---|---|---|---|---|\n"
    text += f"| {options.batch} | {found['ms']['fastdiff']:.0f} | {1e3 * options.batch / found['ms']['fastdiff']:.1f} "
    text += f"| {found['ms']['diffusers']:.0f} | {found['times_faster']:.2f}x |\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps({"machine": about, **found}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
