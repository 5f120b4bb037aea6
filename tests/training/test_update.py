"""Tests of fastdiff.training.update. Oracles: AdamW's formula and norms in float64, PyTorch's AdamW and clipping."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.training.averages import Averages
from fastdiff.training.config import TrainConfig
from fastdiff.training.optimizer import build_optimizer
from fastdiff.training.update import Update, gradient_norms
from support.training_runs import digests, network, trainer

# Float32 through a step of AdamW and of an average, of values up to 1; and through five of them.
FEW_ROUNDINGS, MORE_ROUNDINGS = 8 * 2**-24, 64 * 2**-24

needs_extension = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")


def parts(**settings: Any) -> tuple[nn.Module, Update, torch.optim.AdamW, Averages]:
    torch.manual_seed(0)
    unet = network(num_classes=3).to(memory_format=torch.channels_last)
    config = TrainConfig(**{"steps": 9, "learning_rate": 0.01, "weight_decay": 0.5, **settings})
    optimizer, averages = build_optimizer(unet, config), Averages(unet, config)
    return unet, Update(list(unet.parameters()), optimizer, averages), optimizer, averages


def draw_gradients(unet: nn.Module, seed: int, but: str = "") -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        drawn = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        parameter.grad = None if name == but else drawn


def all_of(unet: nn.Module, averages: Averages) -> list[Tensor]:
    return [*(parameter.detach().clone() for parameter in unet.parameters()), *averages.first.state_dict().values()]


@needs_extension
@pytest.mark.parametrize("max_norm", [1.0, math.inf])
def test_a_step_is_adamws_formula_and_the_average_follows(max_norm: float) -> None:
    unet, update, _, averages = parts()
    draw_gradients(unet, 1)
    before = [parameter.detach().double() for parameter in unet.parameters()]
    gradients = [parameter.grad.double() for parameter in unet.parameters() if parameter.grad is not None]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    assert float(update.norm()) == pytest.approx(norm, rel=2**-22)
    update.step(0, update.norm(), max_norm)
    scale = min(1.0, max_norm / (norm + 1e-6))
    shadows = averages.first.state_dict().values()
    for parameter, shadow, was, gradient in zip(unet.parameters(), shadows, before, gradients, strict=True):
        right = was * (1 - 0.01 * 0.5) - 0.01 * scale * gradient / ((scale * gradient).abs() + 1e-8)
        torch.testing.assert_close(parameter.detach().double(), right, rtol=0, atol=FEW_ROUNDINGS)
        # The first step's decay is a tenth.
        torch.testing.assert_close(shadow.double(), 0.1 * was + 0.9 * right, rtol=0, atol=FEW_ROUNDINGS)


@needs_extension
def test_some_steps_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"no_weight_decay": ("norms", "biases"), "ema_decay": (0.9, 0.99)}
    unet, update, optimizer, averages = parts(**settings)
    theirs, other, their_optimizer, their_averages = parts(**settings)
    for step in range(5):
        # One parameter has no gradient at two of the steps, and is then left as it is.
        for subject in (unet, theirs):
            draw_gradients(subject, step, but="label_emb.weight" if step in (1, 2) else "")
        update.step(step, update.norm(), 1.0)
        with monkeypatch.context() as without:
            without.setattr("fastdiff.training.update.has_extension", lambda: False)
            other.step(step, other.norm(), 1.0)
    for a, b in zip(all_of(unet, averages), all_of(theirs, their_averages), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=MORE_ROUNDINGS)
    for a, b in zip(averages.others().values(), their_averages.others().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=MORE_ROUNDINGS)
    for p, q in zip(unet.parameters(), theirs.parameters(), strict=True):
        ours, wanted = optimizer.state[p], their_optimizer.state[q]
        assert ours["step"] == wanted["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours[name], wanted[name], rtol=0, atol=MORE_ROUNDINGS)


@needs_extension
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            unet, update, _, averages = parts()
            draw_gradients(unet, 1)
            update.step(0, update.norm(), 1.0)
            found.append(all_of(unet, averages))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@needs_extension
def test_some_places_alone_are_updated() -> None:
    unet, update, optimizer, averages = parts()
    whole, whole_update, _, whole_averages = parts()
    draw_gradients(unet, 1)
    draw_gradients(whole, 1)
    before = copy.deepcopy(all_of(unet, averages))
    norm = update.norm()
    update.step(0, norm, 1.0, [0, 3])
    whole_update.step(0, norm, 1.0)
    num = len(before) // 2
    after, wanted = all_of(unet, averages), all_of(whole, whole_averages)
    for place, (now, was, right) in enumerate(zip(after, before, wanted, strict=True)):
        assert torch.equal(now, right if place % num in (0, 3) else was)
    assert len(optimizer.state) == 2


@needs_extension
@pytest.mark.parametrize("num", [1, 15, 4097, 70_001])
def test_a_norm_is_rounded_once(num: int) -> None:
    values = [torch.randn(num, generator=torch.Generator().manual_seed(n)) * 10.0**n for n in (-20, 0, 15)]
    found = gradient_norms(values)
    exact = torch.stack([value.double().square().sum().sqrt() for value in values])
    assert torch.equal(found, exact.float()) or float(((found - exact) / exact).abs().max()) <= 2**-23
    assert gradient_norms([]).numel() == 0


@needs_extension
def test_gradients_that_lie_in_another_way_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, update, optimizer, _ = parts()
    draw_gradients(unet, 1)
    weight = unet.get_parameter("conv_out.weight")
    assert weight.grad is not None
    weight.grad = weight.grad.contiguous()
    assert weight.grad.stride() != weight.stride()
    taken: list[int] = []
    real = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (taken.append(1), real())[1])
    update.step(0, update.norm(), 1.0)
    assert taken == [1]
    # What it has taken counts.
    draw_gradients(unet, 2)
    update.step(1, update.norm(), 1.0)
    assert taken == [1]
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


def test_a_run_without_the_extension_is_resumed_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdiff.training.update.has_extension", lambda: False)
    whole = trainer(tmp_path / "whole", checkpoint_every=3).run()
    trainer(tmp_path / "parts", checkpoint_every=3).run(until=3)
    rest = trainer(tmp_path / "parts", checkpoint_every=3).run()
    assert digests(rest.checkpoint) == digests(whole.checkpoint)
