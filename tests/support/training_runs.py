"""Short training runs: a tiny network, twelve images, and what a run folder holds afterwards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from fastdiff.files.data import DataScaling, ImageData
from fastdiff.nets.unet import UNet
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.training.trainer import TrainConfig, Trainer
from support.networks import one_level

NETWORK = one_level(dropout=0.2)
SCHEDULE = NoiseSchedule.cosine(20)
SIMPLE = Diffusion(SCHEDULE, prediction="v")
HYBRID = Diffusion(SCHEDULE, variance="learned_range")
CONFIG = TrainConfig(steps=6, batch_size=5, learning_rate=1e-2, warmup_steps=4, seed=3, checkpoint_every=2, log_every=1)


def images(num: int = 12, *, levels: int | None = 17, labels: bool = False, seed: int = 0) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        values = torch.rand(num, 1, 4, 4, generator=generator) * 2 - 1
    else:
        values = torch.randint(levels, (num, 1, 4, 4), generator=generator).to(torch.uint8)
    classes = torch.arange(num) % 3 if labels else None
    return ImageData(values, classes, DataScaling(levels), "test")


def network(**changes: Any) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(dataclasses.replace(NETWORK, **changes))


def trainer(folder: Path, *, override: bool = False, **changes: Any) -> Trainer:
    """A trainer of a fresh network; `changes` are those of the configuration."""
    config = dataclasses.replace(CONFIG, **changes)
    return Trainer(network(), SIMPLE, images(), config, folder, override=override)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
