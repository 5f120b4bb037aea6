"""A step's update, shared out among processes. Oracles: PyTorch's norm and clipping, DistributedDataParallel's runs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdiff.files.checkpoint import latest_checkpoint
from fastdiff.training import sharing as module
from fastdiff.training.sharing import Sharing, sharing
from fastdiff.training.trainer import Trainer
from fastdiff.training.world import World
from support.processes import together
from support.tolerances import FLOAT32_FEW
from support.training_runs import CONFIG, SIMPLE, digests, images, network

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone has files without a name")

# Of three processes: shapes, strides and numbers that no whole number of parts fits.
SHAPES = [(5, 3, 3, 3), (7,), (4, 6), (1,), ()]


def test_parts_are_of_about_the_same_size() -> None:
    sizes = [parameter.numel() for parameter in network(channels=16).parameters()]
    for num in (2, 3, 4):
        owners = module._shared_out(sizes, num)
        loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(num)]
        assert max(loads) - min(loads) <= max(sizes)
        assert sum(loads) == sum(sizes)
    assert module._shared_out([1], 2) == [0]


def test_one_process_shares_nothing() -> None:
    assert sharing(network(), World()) is None


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    found[0].data = found[0].data.contiguous(memory_format=torch.channels_last)
    return found


def gradients(rank: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1 + rank)
    found: list[Tensor | None] = [torch.randn(shape, generator=generator) for shape in SHAPES]
    # Of a parameter that nobody uses.
    found[2] = None
    return found


def update(rank: int, max_norm: float) -> Any:
    """A step of plain descent, twice, and what was gathered of something that follows the weights."""
    world = World.current()
    ours = parameters()
    memory = module.shared_memory(world, world.size * sum(parameter.numel() for parameter in ours))
    assert memory is not None
    subject = Sharing(ours, world, memory)
    moments = [torch.zeros_like(parameter) for parameter in ours]
    counts = [torch.zeros(()) for _ in ours]
    for _ in range(2):
        for parameter, gradient in zip(ours, gradients(rank), strict=True):
            parameter.grad = gradient
        subject.send()
        world.meet()
        norm = subject.norm()
        torch.nn.utils.clip_grads_with_norm_([ours[place] for place in subject.own], max_norm, norm)
        for place, parameter in enumerate(ours):
            assert place in subject.own or parameter.grad is None
            if parameter.grad is not None:
                parameter.data.sub_(parameter.grad)
                moments[place].add_(parameter.grad)
                counts[place].add_(1)
        subject.spread()
        assert subject.is_partial
        subject.gather([moments, counts])
    subject.gather(iter([]))
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    return [t.detach().numpy().copy() for t in (norm, *ours, *moments)], [int(count) for count in counts], subject.own


@pytest.mark.parametrize("max_norm", [1.0, float("inf")])
def test_a_shared_update_is_that_of_the_summed_gradient(max_norm: float) -> None:
    size = 3
    outcomes = together(size, update, max_norm)
    assert [outcome.error for outcome in outcomes] == [None] * size
    assert sorted(place for outcome in outcomes for place in outcome.value[2]) == list(range(len(SHAPES)))
    expected = parameters()
    for parameter, *parts in zip(expected, *(gradients(rank) for rank in range(size)), strict=True):
        parameter.grad = None if parts[0] is None else torch.stack([part.double() for part in parts]).sum(0).float()
    norm = torch.nn.utils.clip_grad_norm_(expected, max_norm)
    moved = [torch.zeros_like(p) if p.grad is None else 2 * p.grad for p in expected]
    whole = [norm, *(p.detach() - m for p, m in zip(expected, moved, strict=True)), *moved]
    for outcome in outcomes:
        found, counts, _ = outcome.value
        assert counts == [2, 2, 0, 2, 2]
        for value, wanted, first in zip(found, whole, outcomes[0].value[0], strict=True):
            assert (value == first).all()
            torch.testing.assert_close(torch.from_numpy(value), wanted, rtol=FLOAT32_FEW, atol=FLOAT32_FEW)


def without(rank: int, kind: str) -> bool:
    world = World.current()
    if kind == "no memory" and rank == 0:
        module.os.posix_fallocate = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))  # type: ignore[assignment]
    if kind == "another machine" and rank == 1:
        module.os.readlink = lambda _: "/memfd:fastdiff-0 (deleted)"  # type: ignore[assignment]
    return sharing(network(), world) is None


@pytest.mark.parametrize("kind", ["nothing", "no memory", "another machine"])
def test_memory_is_shared_by_all_or_by_none(kind: str) -> None:
    outcomes = together(2, without, kind)
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(kind != "nothing", None)] * 2


def train(rank: int, folder: Path, shares: bool) -> bool:
    if not shares:
        module.shared_memory = lambda *_: None  # type: ignore[assignment]
    config = dataclasses.replace(
        CONFIG, batch_size=4, ema_decay=(0.999, 0.9), power_widths=(0.05, 0.1), snapshot_every=3, micro_batch=1,
        no_weight_decay=("biases",),
    )  # fmt: skip
    subject = Trainer(network(), SIMPLE, images(), config, folder)
    subject.run(until=3)
    subject.run()
    # What is looked at afterwards is what was saved, at each process.
    newest = latest_checkpoint(folder)
    assert newest is not None
    saved = load_file(newest / "model.safetensors")
    assert all(torch.equal(value, subject.ema.state_dict()[name]) for name, value in saved.items())
    return subject._sharing is not None


def test_two_processes_end_with_the_bytes_of_distributed_data_parallel(tmp_path: Path) -> None:
    found = {}
    for name, shares in (("shared", True), ("averaged", False)):
        outcomes = together(2, train, tmp_path / name, shares)
        assert [(outcome.value, outcome.error) for outcome in outcomes] == [(shares, None)] * 2
        newest = latest_checkpoint(tmp_path / name)
        assert newest is not None
        found[name] = digests(newest) | digests(tmp_path / name / "snapshots")
    assert "averages.safetensors" in found["shared"]
    assert found["shared"] == found["averaged"]
