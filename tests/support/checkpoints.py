"""Checkpoints that say in every weight which step they are of."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdiff.files.checkpoint import load_model, save_checkpoint
from fastdiff.files.data import DataScaling
from fastdiff.nets.unet import UNet
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from support.networks import one_level

CONFIG = one_level()
DIFFUSION = Diffusion(NoiseSchedule.cosine(10), prediction="v")
SCALING = DataScaling(17)


def network(value: float | None = None) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(CONFIG)
    with torch.no_grad():
        for parameter in unet.parameters():
            if value is None:
                parameter.copy_(torch.rand(parameter.shape))
            else:
                parameter.fill_(value)
    return unet


def save_step(run: Path, step: int, keep: int = 2) -> Path:
    """A checkpoint whose average is `step` everywhere, and whose raw weights are -step."""
    ema, raw = network(step).state_dict(), network(-step).state_dict()
    return save_checkpoint(
        run,
        network(0),
        DIFFUSION,
        SCALING,
        step=step,
        ema=ema,
        training={"batch_size": 4},
        data={"source": "digits"},
        training_tensors={f"raw.{name}": value for name, value in raw.items()},
        keep=keep,
    )


def step_of(run: Path) -> int:
    """The step that a run folder loads as, read from its weights as well."""
    loaded = load_model(run)
    step: int = loaded.metadata["step"]
    assert all(bool((p == step).all()) for p in loaded.unet.parameters())
    assert all(bool((p == -step).all()) for p in load_model(run, weights="raw").unet.parameters())
    return step


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.rglob("*") if path.name.startswith(".")]
