"""Tests of fastdiff.training.rates. Independent oracles: torch.optim.lr_scheduler, diffusers.optimization, formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from fastdiff.training.rates import RateSchedule, rate_factor

STEPS = 40
# Float64 through a few operations; PyTorch's closed recurrences multiply forty factors.
ROUNDING = 1e-12


def of_torch(build: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(STEPS + 1):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_and_linear_are_those_of_torch(final: float) -> None:
    cosine = of_torch(lambda optimizer: CosineAnnealingLR(optimizer, STEPS, eta_min=final))
    linear = of_torch(lambda optimizer: LinearLR(optimizer, 1.0, max(final, 1e-300), STEPS))
    for schedule, expected in (("cosine", cosine), ("linear", linear)):
        kind: Any = schedule
        ours = [rate_factor(kind, step, steps=STEPS, final=final) for step in range(STEPS)]
        assert ours == pytest.approx(expected[1:], rel=ROUNDING, abs=ROUNDING)
        assert ours[-1] == pytest.approx(final, abs=ROUNDING)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_warm_ups_are_those_of_diffusers(warmup: int) -> None:
    from diffusers import optimization

    expected = {
        "constant": optimization.get_constant_schedule_with_warmup,
        "cosine": lambda optimizer, num: optimization.get_cosine_schedule_with_warmup(optimizer, num, STEPS),
        "linear": lambda optimizer, num: optimization.get_linear_schedule_with_warmup(optimizer, num, STEPS),
    }
    for schedule, build in expected.items():
        kind: Any = schedule
        theirs = of_torch(lambda optimizer, build=build: build(optimizer, warmup))  # type: ignore[misc]
        ours = [rate_factor(kind, step, steps=STEPS, warmup_steps=warmup) for step in range(STEPS)]
        # Theirs has a rate of 0 at the first step; ours begins with the next.
        assert ours == pytest.approx(theirs[1:], rel=ROUNDING, abs=ROUNDING)


def test_inverse_square_root_is_edm2s() -> None:
    """ref_lr / sqrt(max(t / t_ref, 1)) with a linear ramp before it."""
    for step in range(200):
        expected = min(1, (step + 1) / 10) / math.sqrt(max((step + 1) / 50, 1))
        ours = rate_factor("inverse_sqrt", step, steps=200, warmup_steps=10, decay_start=50)
        assert ours == pytest.approx(expected, rel=ROUNDING)
    # Without a start it falls from the end of the warm-up, without either from the first step.
    assert rate_factor("inverse_sqrt", 39, steps=1, warmup_steps=10) == pytest.approx(0.5)
    assert rate_factor("inverse_sqrt", 3, steps=1) == 0.5
    assert rate_factor("inverse_sqrt", 10**6, steps=1, final=0.25) == 0.25


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt"])
def test_rates_are_full_up_to_the_start_and_fall_from_there(schedule: RateSchedule) -> None:
    rates = [rate_factor(schedule, step, steps=STEPS, warmup_steps=4, decay_start=20, final=0.1) for step in range(60)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(rates[3:20]) == {1.0}
    assert all(before > after for before, after in itertools.pairwise(rates[19:40]))
    assert min(rates[4:]) >= 0.1 - ROUNDING
    if schedule != "inverse_sqrt":
        assert rates[STEPS - 1 :] == pytest.approx([0.1] * 21, abs=ROUNDING)


def test_the_constant_rate_is_what_it_was() -> None:
    for warmup in (0, 1, 3, 5000):
        for step in (0, 1, 2, 3, 4999, 10**6):
            found = rate_factor("constant", step, steps=10, warmup_steps=warmup)
            assert found == min(1.0, (step + 1) / max(1, warmup))


def test_a_schedule_that_starts_at_the_end_stays_full() -> None:
    assert rate_factor("cosine", STEPS - 1, steps=STEPS, warmup_steps=STEPS) == 1.0
    assert rate_factor("linear", STEPS, steps=STEPS, warmup_steps=STEPS) == 0.0
