"""A step cut into micro-batches: the same draws, and the same gradient but for the order of its sums."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdiff.training.trainer import TrainConfig, Trainer
from support.tolerances import FLOAT32_FEW
from support.training_runs import CONFIG, SIMPLE, images, network


def first_step(folder: Path, micro_batch: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients and loss of the first step, without dropout."""
    config = dataclasses.replace(CONFIG, batch_size=8, micro_batch=micro_batch, clip_norm=None)
    trainer = Trainer(network(dropout=0.0), SIMPLE, images(), config, folder)
    loss = trainer._gradients(0)
    return {name: p.grad for name, p in trainer.unet.named_parameters() if p.grad is not None}, loss


@pytest.mark.parametrize("size", [1, 3, 4, 8, 100])
def test_gradients_are_those_of_the_whole_batch(tmp_path: Path, size: int) -> None:
    whole, loss = first_step(tmp_path / "whole", None)
    cut, same = first_step(tmp_path / "cut", size)
    torch.testing.assert_close(same, loss, rtol=FLOAT32_FEW, atol=FLOAT32_FEW)
    assert set(cut) == set(whole)
    for name, gradient in whole.items():
        # Of gradients near 0 only roundings are left, which the smallest scale allows for.
        atol = FLOAT32_FEW * max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(cut[name], gradient, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "4"])
def test_a_wrong_size_is_refused(wrong: object) -> None:
    with pytest.raises((ValueError, TypeError), match="micro_batch"):
        TrainConfig(steps=1, micro_batch=wrong)  # type: ignore[arg-type]
