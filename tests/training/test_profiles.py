"""Tests of fastdiff.training.profiles. Independent oracles: numerical integrals, known histories, ema-pytorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.training.profiles import MAX_WIDTH, checked_width, combine, exponent, overlap, power_decay

# Float64 through powers of about 50 and a linear system with a condition of about 1e5.
SOLVED = 1e-9
ROUNDING = 1e-12
# Integrals by the midpoints of 200,000 intervals and more.
INTEGRATED = 1e-6
WIDTHS = (0.05, 0.1)


def profile(step: int, width: float, length: int) -> np.ndarray:
    """What each step weighs in the average, [length], multiplied out from the decays."""
    gamma, weights = exponent(width), np.zeros(length)
    for taken in range(1, step + 1):
        decay = power_decay(gamma, taken)
        weights *= decay
        weights[taken - 1] = 1 - decay
    return weights


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_exponent_has_the_width(width: float) -> None:
    """The standard deviation of tau under the density tau^gamma on [0, 1]."""
    gamma = exponent(width)
    edges = np.linspace(0, 1, 200_001)
    tau = (edges[1:] + edges[:-1]) / 2
    density = tau**gamma / (tau**gamma).sum()
    mean = (density * tau).sum()
    assert math.sqrt((density * (tau - mean) ** 2).sum()) == pytest.approx(width, rel=INTEGRATED)


def test_the_numbers_of_the_paper() -> None:
    """arXiv:2312.02696, figure 13: widths of 0.05, 0.10 and 0.25 are exponents of 16.97, 6.94 and 0.72."""
    assert [round(exponent(width), 2) for width in (0.05, 0.1, 0.25)] == [16.97, 6.94, 0.72]
    assert exponent(MAX_WIDTH) == pytest.approx(0, abs=ROUNDING)


def test_what_the_decays_make_is_the_integral_of_the_profile() -> None:
    for width in (0.03, 0.1, 0.28):
        power = exponent(width) + 1
        edges = (np.arange(51) / 50) ** power
        assert profile(50, width, 50) == pytest.approx(np.diff(edges), rel=ROUNDING, abs=ROUNDING)


@pytest.mark.parametrize(("a", "b"), [((30, 2.0), (50, 7.5)), ((50, 7.5), (30, 2.0)), ((40, 0.5), (40, 16.97))])
def test_overlaps_are_integrals(a: tuple[int, float], b: tuple[int, float]) -> None:
    edges = np.linspace(0, 60, 600_001)
    tau = (edges[1:] + edges[:-1]) / 2
    densities = [np.where(tau < t, (g + 1) * tau**g / t ** (g + 1), 0) for t, g in (a, b)]
    expected = (densities[0] * densities[1]).sum() * (edges[1] - edges[0])
    assert float(overlap(*a, *b)) == pytest.approx(expected, rel=INTEGRATED)


@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.12, 0.2, 0.25])
@pytest.mark.parametrize("step", [400, 390])
def test_combined_averages_are_the_average_itself_within_the_error(width: float, step: int) -> None:
    """Of histories that are known; by Cauchy and Schwarz the bound that `Combination` states."""
    steps = [(i + 1) * 20 for i in range(20) for _ in WIDTHS]
    widths = [width for _ in range(20) for width in WIDTHS]
    found = combine(steps, widths, step, width)
    assert found.weights.sum() == pytest.approx(1, abs=ROUNDING)
    assert (found.error == 0) == (width in WIDTHS and step == 400)
    stored = np.stack([profile(t, w, 400) for t, w in zip(steps, widths, strict=True)])
    asked = profile(step, width, 400)
    walks = np.random.default_rng(0).normal(size=(400, 50)).cumsum(axis=0) + 100
    # The history that such a combination is worst at is what is wrong in its profile.
    worst = (found.weights @ stored - asked)[:, None]
    gamma = exponent(width)
    for history in (walks, worst):
        spread = np.sqrt(((history - history.mean(axis=0)) ** 2).sum(axis=0))
        bound = found.error * (gamma + 1) / math.sqrt((2 * gamma + 1) * step) * spread
        off = np.abs(found.weights @ (stored @ history) - asked @ history)
        assert (off <= bound * (1 + SOLVED) + SOLVED).all()
    assert off >= 0.9 * bound


def test_the_weights_are_those_of_ema_pytorch() -> None:
    from ema_pytorch.post_hoc_ema import sigma_rel_to_gamma, solve_weights

    steps, widths = [100, 200, 300, 100, 200, 300], [0.05] * 3 + [0.1] * 3
    for step, width in ((300, 0.07), (300, 0.15), (250, 0.1), (200, 0.05)):
        assert exponent(width) == pytest.approx(sigma_rel_to_gamma(width), rel=ROUNDING)
        theirs = solve_weights(
            torch.tensor(steps),
            torch.tensor([sigma_rel_to_gamma(one) for one in widths], dtype=torch.float64),
            torch.tensor([step]),
            torch.tensor([sigma_rel_to_gamma(width)], dtype=torch.float64),
        )[:, 0].numpy()
        # They leave the sum as it comes out.
        assert combine(steps, widths, step, width).weights == pytest.approx(theirs / theirs.sum(), abs=SOLVED)


def test_the_error_grows_away_from_what_is_stored() -> None:
    steps, widths = [t for t in range(100, 1100, 100) for _ in WIDTHS], [*WIDTHS] * 10
    errors = [combine(steps, widths, 1000, width).error for width in (0.05, 0.04, 0.03, 0.02, 0.01)]
    assert errors == sorted(errors)
    assert errors[0] == 0
    assert errors[-1] > 0.4
    errors = [combine(steps, widths, 1000, width).error for width in (0.1, 0.15, 0.2, 0.25, 0.28)]
    assert errors == sorted(errors)


def test_widths_that_are_none_are_refused() -> None:
    assert checked_width("width", 0.1) == 0.1
    for value in (0, -0.1, 0.289, math.nan, True, "0.1", None):
        with pytest.raises(ValueError, match=r"width must be a number in \(0, 0\.2887\)"):
            checked_width("width", value)
