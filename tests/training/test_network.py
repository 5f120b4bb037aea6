"""Tests of fastdiff.training.network: what a training does to its network leaves numbers and network as they were."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastdiff.files.checkpoint import load_model
from fastdiff.nets.blocks import Block, ResBlock
from fastdiff.training.network import in_training, maybe_compiled
from fastdiff.training.trainer import Trainer, TrainResult
from support.training_runs import CONFIG, SIMPLE, digests, images, metrics, network, trainer

# Float32 through a network of about ten layers, in two orders of summation and with other fused products.
COMPILED = 1e-4


def same_bytes(first: TrainResult, second: TrainResult) -> bool:
    """Whether two runs have the same weights, averages and moments; their settings may differ."""
    names = ("model.safetensors", "training.safetensors")
    return all(digests(first.checkpoint)[name] == digests(second.checkpoint)[name] for name in names)


@pytest.mark.parametrize(
    "settings",
    [{}, {"micro_batch": 2}, {"precision": "bfloat16"}],
    ids=["plain", "micro-batches", "bfloat16"],
)
def test_recomputed_activations_give_the_same_bytes(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The network has dropout: its masks are drawn again as they were."""
    kept = trainer(tmp_path / "kept", **settings).run()
    run = trainer(tmp_path / "recomputed", activation_checkpointing=True, **settings)
    assert not any(block.recompute for block in run.unet.modules() if isinstance(block, Block))
    recomputed = run.run()
    assert same_bytes(kept, recomputed)
    assert not any(block.recompute for block in run.unet.modules() if isinstance(block, Block))


def test_recomputation_is_done_and_may_change_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = ResBlock.forward
    monkeypatch.setattr(ResBlock, "forward", lambda *args: (calls.append(1), forward(*args))[1])
    for folder, setting, times in (("kept", False, 1), ("recomputed", True, 2)):
        calls.clear()
        trainer(tmp_path / folder, activation_checkpointing=setting).run(until=1)
        assert len(calls) == times * sum(isinstance(module, ResBlock) for module in network().modules())
    # Of no consequence to what is trained, so nothing has to be said.
    assert trainer(tmp_path / "kept", activation_checkpointing=True).step == 1


def test_the_network_is_afterwards_as_it_was() -> None:
    unet = network().eval()
    unet.middle_block.recompute = True
    config = dataclasses.replace(CONFIG, activation_checkpointing=True)

    def fail_inside() -> None:
        with in_training(unet, config):
            assert unet.training
            # The first block is one convolution, which has nothing to compute again.
            assert not unet.input_blocks[0].recompute
            assert unet.input_blocks[1].recompute
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert not unet.training
    assert [block.recompute for block in unet.modules() if isinstance(block, Block)].count(True) == 1


def test_a_network_is_compiled_where_asked_and_once() -> None:
    config = dataclasses.replace(CONFIG, compile=True)
    module: Any = nn.Linear(2, 2)
    assert maybe_compiled(module, CONFIG) is module
    compiled = maybe_compiled(module, config)
    assert compiled._orig_mod is module
    assert maybe_compiled(compiled, config) is compiled


def test_a_compiled_training_draws_the_same_and_saves_plain_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer(tmp_path / "plain").run(until=2)
    # As the real one, but for the code that it makes.
    compile_eagerly = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr("fastdiff.training.network.torch.compile", compile_eagerly)
    compiled = trainer(tmp_path / "compiled", compile=True).run(until=2)
    assert same_bytes(plain, compiled)
    # Other last bits, in general: so a run that goes on says it.
    with pytest.raises(ValueError, match="compile: True in the checkpoint, False now"):
        trainer(tmp_path / "compiled")
    assert trainer(tmp_path / "compiled", override=True).step == 2


@pytest.mark.skipif("FASTDIFF_TEST_COMPILE" not in os.environ, reason="two minutes; FASTDIFF_TEST_COMPILE=1 runs it")
@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler")
def test_a_training_compiled_by_inductor_has_the_losses_of_the_plain_one(tmp_path: Path) -> None:
    """Dropout included: the masks are drawn from the same seeds."""
    settings = dataclasses.replace(CONFIG, steps=3, warmup_steps=1)
    for folder, compiled in (("plain", False), ("compiled", True)):
        config = dataclasses.replace(settings, compile=compiled)
        Trainer(network(), SIMPLE, images(), config, tmp_path / folder).run()
    plain, found = ([entry["loss"] for entry in metrics(tmp_path / folder)] for folder in ("plain", "compiled"))
    assert found == pytest.approx(plain, rel=COMPILED)
    assert load_model(tmp_path / "compiled").metadata["step"] == 3
