"""Trainings of networks that are given images beside the noisy one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.nets.conditions import ImageCondition
from fastdiff.training.trainer import Trainer
from support.training_runs import CONFIG, SIMPLE, digests, images, network

CHANNELS = {"low_res:2": 2, "inpaint": 3}


def run_of(folder: Path, condition: str | None, **settings: Any) -> Trainer:
    config = dataclasses.replace(CONFIG, condition=condition, **({"warmup_steps": 0} | settings))
    return Trainer(network(in_channels=CHANNELS.get(condition or "", 1)), SIMPLE, images(), config, folder)


def seen_by(run: Trainer) -> list[Tensor]:
    """What the network is given in each call of a whole run."""
    seen: list[Tensor] = []
    handle = run.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    run.run()
    handle.remove()
    return seen


@pytest.mark.parametrize("text", CHANNELS)
def test_network_sees_the_condition_of_its_images(tmp_path: Path, text: str) -> None:
    plain = seen_by(run_of(tmp_path / "plain", None))
    run = run_of(tmp_path / "run", text)
    given, places = seen_by(run), torch.arange(CONFIG.batch_size).numpy()
    for step, (x, x_t) in enumerate(zip(given, plain, strict=True)):
        # The noisy images are those of any training; behind them is what the flipped images show.
        assert torch.equal(x[:, :1], x_t)
        x0 = run.data.scaling.to_model(run.batches.at(step, places).images)
        assert torch.equal(x[:, 1:], ImageCondition(text).of_training(x0, CONFIG.seed, step, places))
    parts = seen_by(run_of(tmp_path / "parts", text, micro_batch=2))
    whole = [torch.cat(parts[i : i + 3]) for i in range(0, len(parts), 3)]
    assert all(torch.equal(one, two) for one, two in zip(whole, given, strict=True))


@pytest.mark.parametrize("text", CHANNELS)
def test_conditioned_run_resumes_and_its_model_says_what_it_takes(tmp_path: Path, text: str) -> None:
    whole = run_of(tmp_path / "whole", text).run().checkpoint
    run_of(tmp_path / "parts", text).run(until=3)
    assert digests(run_of(tmp_path / "parts", text).run().checkpoint) == digests(whole)
    pipe = fd.Pipeline.from_pretrained(tmp_path / "whole")
    assert pipe.condition == ImageCondition(text)
    assert (pipe.image_shape, pipe.extra_channels) == ((1, 4, 4), CHANNELS[text] - 1)
    pipe.save_pretrained(tmp_path / "saved")
    assert fd.Pipeline.from_pretrained(tmp_path / "saved").condition == pipe.condition
    mask = torch.ones(4, 4) if text == "inpaint" else None
    assert pipe.sample(2, steps=2, condition=torch.zeros(2, 1, 4, 4), mask=mask).shape == (2, 1, 4, 4)


def test_conditions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 channels, and their condition inpaint has 2, but the network takes 2"):
        Trainer(network(in_channels=2), SIMPLE, images(), dataclasses.replace(CONFIG, condition="inpaint"), tmp_path)
    with pytest.raises(ValueError, match="the images have 1 channels, but the network takes 2"):
        Trainer(network(in_channels=2), SIMPLE, images(), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="low_res:3 needs a height and a width that 3 divides, got 4x4 images"):
        Trainer(network(in_channels=2), SIMPLE, images(), dataclasses.replace(CONFIG, condition="low_res:3"), tmp_path)
    with pytest.raises(ValueError, match="unknown condition 'lowres': did you mean 'low_res:2'"):
        dataclasses.replace(CONFIG, condition="lowres")
    run_of(tmp_path, "low_res:2").run(until=1)
    with pytest.raises(ValueError, match="is of another run"):
        run_of(tmp_path, None)
