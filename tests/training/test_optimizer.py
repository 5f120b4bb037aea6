"""Tests of fastdiff.training.optimizer. Independent oracle: AdamW's formula in float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.training.config import TrainConfig
from fastdiff.training.optimizer import build_optimizer, decay_free
from support.training_runs import CONFIG, digests, network, trainer

# Float32 through one step of AdamW, of values up to 1.
FEW_ROUNDINGS = 8 * 2**-24


def test_kinds_are_told_by_their_layers() -> None:
    unet = network(num_classes=3)
    norms, biases = decay_free(unet, ("norms",)), decay_free(unet, ("biases",))
    assert decay_free(unet, ("embeddings",)) == {"label_emb.weight"}
    assert {"norm_out.weight", "norm_out.bias", "middle_block.1.norm.weight"} <= norms
    assert all("norm" in name for name in norms)
    assert biases == {name for name, _ in unet.named_parameters() if name.endswith(".bias")}
    assert decay_free(unet, ()) == set()
    assert decay_free(unet, ("norms", "embeddings", "biases")) == norms | biases | {"label_emb.weight"}
    # Matrices of layers always decay.
    assert {"conv_out.weight", "time_embed.0.weight"}.isdisjoint(norms | biases)


def test_a_group_that_is_free_does_not_decay() -> None:
    """AdamW: p (1 - lr wd) - lr m / (sqrt(v) + eps), m and v corrected for their start."""
    unet = network(num_classes=3)
    config = TrainConfig(steps=1, learning_rate=0.01, weight_decay=0.5, no_weight_decay=("norms", "embeddings"))
    optimizer = build_optimizer(unet, config)
    free = decay_free(unet, config.no_weight_decay)
    expected, generator = {}, torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        # In the parameter's layout, as autograd makes gradients: the fused step goes through memory.
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        gradient, before = parameter.grad.double(), parameter.detach().double()
        decay = 0.0 if name in free else 0.5
        expected[name] = before * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + 1e-8)
    optimizer.step()
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=0, atol=FEW_ROUNDINGS, msg=name)


def test_without_groups_there_is_one() -> None:
    config = dataclasses.replace(CONFIG, weight_decay=0.1)
    for kinds, num in ((), 1), (("norms", "biases"), 2), (("embeddings",), 1):
        built = build_optimizer(network(), dataclasses.replace(config, no_weight_decay=kinds))  # type: ignore[arg-type]
        assert len(built.param_groups) == num
        assert sum(len(group["params"]) for group in built.param_groups) == len(list(network().parameters()))


def test_runs_with_groups_resume_to_the_bit_and_those_with_no_decay_are_as_without(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"weight_decay": 0.3, "no_weight_decay": ("norms", "biases"), "checkpoint_every": 3}
    whole = trainer(tmp_path / "whole", **settings).run()
    trainer(tmp_path / "parts", **settings).run(until=3)
    rest = trainer(tmp_path / "parts", **settings).run()
    assert digests(rest.checkpoint) == digests(whole.checkpoint)
    plain = trainer(tmp_path / "plain", checkpoint_every=3).run()
    grouped = trainer(tmp_path / "grouped", no_weight_decay=("norms",), checkpoint_every=3).run()
    names = ("model.safetensors", "training.safetensors")
    assert [digests(plain.checkpoint)[name] for name in names] == [digests(grouped.checkpoint)[name] for name in names]
    assert digests(plain.checkpoint)["model.safetensors"] != digests(whole.checkpoint)["model.safetensors"]


@pytest.mark.parametrize("kinds", [["norm"], "norms", ["norms", "norms"], [1], None, {"norms": 1}])
def test_unknown_kinds_are_refused(kinds: Any) -> None:
    with pytest.raises(ValueError, match=r"no_weight_decay must be a list of 'norms', 'biases', 'embeddings'"):
        TrainConfig(steps=1, no_weight_decay=kinds)
