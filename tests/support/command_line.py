"""Run the command line in this process, and a small saved model for it."""

import torch
from typer.testing import CliRunner

from fastdiff.cli.app import app
from fastdiff.files.checkpoint import save_model
from fastdiff.files.data import DataScaling
from fastdiff.nets.conditions import ImageCondition
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.unet import UNet
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule

SMALL_UNET = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "dropout": 0.0}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def works(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def fails(*arguments):
    """The one line that a failing command prints."""
    result = run(*arguments)
    assert result.exit_code in (1, 2), result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), result.output
    assert "Traceback" not in result.output
    return lines[-1]


def small_model(folder, *, channels=3, size=16, scaling=256, num_classes=None, timesteps=8, condition=None):
    torch.manual_seed(0)
    seen = 0 if condition is None else ImageCondition(condition).channels(channels)
    sizes = {"image_size": size, "in_channels": channels + seen, "out_channels": channels, "num_classes": num_classes}
    config = UNetConfig(**sizes, **SMALL_UNET, attention_resolutions=())
    training = None if condition is None else {"condition": condition}
    diffusion = Diffusion(NoiseSchedule.cosine(timesteps))
    save_model(folder, UNet(config), diffusion, DataScaling(scaling), training=training)
    return folder


def train_options(out, *more):
    sets = [f"unet.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in SMALL_UNET.items()]
    options = ["train", "--data", "digits", "--out", out, "--steps", 4, "--batch-size", 8, "-T", 10]
    # It is not looked at: that would take longer than the training.
    options += ["--picture-every", 0, "--evaluate-every", 0]
    for text in [*sets, "unet.attention_resolutions=[]", "train.warmup_steps=0"]:
        options += ["--set", text]
    return [*options, *more]
