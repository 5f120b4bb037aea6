"""The network of each process. With several, test_processes.py trains them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastdiff.training.replicas import replicated, settled, unsynced
from fastdiff.training.world import World
from support.processes import together
from support.tolerances import FLOAT32_FEW
from support.training_runs import network


def test_one_process_keeps_its_network() -> None:
    unet = network()
    assert replicated(unet, World()) is unet
    with settled(unet, unet.config, 2, (4, 4)), unsynced(unet, True):
        pass
    assert all(parameter.grad is None for parameter in unet.parameters())


def gradients(model: nn.Module, rank: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(2, 1, 4, 4, generator=generator)
    model(x, torch.tensor([1, 2])).square().sum().backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def passes(rank: int, settles: bool) -> Any:
    """Gradients of a first and a second pass on the same images."""
    torch.manual_seed(rank)
    unet = network(dropout=0.0, channels=16)
    with torch.no_grad():
        unet.conv_out.weight.fill_(0.1)
    model = replicated(unet, World(rank, 3))
    assert isinstance(model, DistributedDataParallel)
    found = []
    with settled(model, unet.config, 2, (4, 4)) if settles else unsynced(model, False):
        for _ in range(2):
            model.zero_grad()
            found.append(gradients(model, rank))
        model.zero_grad()
        with unsynced(model, True):
            own = gradients(model, rank)
        both = gradients(model, rank)
    return found, own, both


@pytest.mark.parametrize("settles", [True, False])
def test_sums_have_the_same_order_in_the_first_step_and_in_later_ones(settles: bool) -> None:
    """Without a pass before, they have not: the trap is there."""
    outcomes = together(3, passes, settles)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    ours = [outcome.value[0] for outcome in outcomes]
    for first, second in ours:
        same = all(np.array_equal(first[name], second[name]) for name in first)
        assert same == settles
        # All have the same, and it is the mean.
        assert all(np.array_equal(second[name], ours[0][1][name]) for name in second)
    alone = [gradients(filled(network(dropout=0.0, channels=16)), rank) for rank in range(3)]
    for name, value in ours[0][1].items():
        plain = name.removeprefix("module.")
        mean = np.mean([part[plain] for part in alone], axis=0)
        scale = max(1.0, np.abs(mean).max())
        np.testing.assert_allclose(value, mean, rtol=0, atol=FLOAT32_FEW * scale)
    for rank, outcome in enumerate(outcomes):
        _, own, both = outcome.value
        for name, value in own.items():
            assert np.array_equal(value, alone[rank][name.removeprefix("module.")])
            twice = ours[0][1][name] * 2
            scale = max(1.0, np.abs(twice).max())
            np.testing.assert_allclose(both[name], twice, rtol=0, atol=FLOAT32_FEW * scale)


def filled(unet: nn.Module) -> nn.Module:
    with torch.no_grad():
        unet.conv_out.weight.fill_(0.1)  # type: ignore[operator, union-attr]
    return unet
