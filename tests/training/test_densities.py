"""Densities of the timesteps, draws from them, and IDDPM's history of losses."""

import math

import numpy as np
import pytest
from scipy import stats

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.training.densities import LossHistory, draw, importance, log_normal
from support.tolerances import FLOAT64, FLOAT64_PRODUCT

T = 6
# A probability whose complement has lost it all but seven digits.
TINY = 1e-9
DENSITY = np.array([0.0, 0.3, 0.05, 0.0, 0.65, 0.0])


def test_draws_have_their_density():
    found = np.concatenate([draw(DENSITY, 3, step, np.arange(100)) for step in range(400)])
    shares = np.bincount(found, minlength=T) / found.size
    assert (shares[DENSITY == 0] == 0).all()
    # A share's standard deviation is at most 0.0024 with 40,000 draws: five of them.
    np.testing.assert_allclose(shares, DENSITY, atol=0.012)
    assert stats.chisquare(shares[DENSITY > 0] * found.size, DENSITY[DENSITY > 0] * found.size).pvalue > 1e-4


def test_draws_are_functions_of_seed_step_and_place():
    whole = draw(DENSITY, 3, 7, np.arange(64))
    # Two processes, each with its own places.
    for rank in range(2):
        np.testing.assert_array_equal(draw(DENSITY, 3, 7, np.arange(rank, 64, 2)), whole[rank::2])
    assert (draw(DENSITY, 3, 8, np.arange(64)) != whole).any()
    assert (draw(DENSITY, 4, 7, np.arange(64)) != whole).any()


def test_draws_are_the_inverse_of_the_distribution(monkeypatch):
    """At the ends of the words, and on both sides of an edge."""
    edge = 0x4CCCCCCC  # 0.3 of 2^32, rounded down
    words = np.array([[0, 0], [edge, 0], [edge + 1, 0], [2**32 - 1, 2**32 - 1]], dtype=np.uint32)
    monkeypatch.setattr("fastdiff.training.densities.words", lambda *_: words)
    assert draw(DENSITY, 0, 0, range(4)).tolist() == [1, 1, 2, 4]
    # The scale of the density is free.
    assert draw(DENSITY * 1e-300, 0, 0, range(4)).tolist() == [1, 1, 2, 4]


def test_draws_tell_probabilities_far_below_a_word_apart(monkeypatch):
    words = np.array([[0, 0x40000000], [0, 0xC0000000]], dtype=np.uint32)
    monkeypatch.setattr("fastdiff.training.densities.words", lambda *_: words)
    assert draw(np.array([2.0**-33, 1 - 2.0**-33]), 0, 0, range(2)).tolist() == [0, 1]


def test_importance_keeps_the_mean():
    """By enumeration: the mean under p of loss / (T p) is the mean of the losses."""
    losses = np.array([4.0, 0.1, 7.0, 2.0, 0.3, 1.1])
    p = np.array([0.1, 0.2, 0.05, 0.15, 0.3, 0.2])
    assert (p * importance(p) * losses).sum() == pytest.approx(losses.mean(), rel=FLOAT64)
    np.testing.assert_allclose(importance(3 * p), importance(p), rtol=FLOAT64)
    assert importance(DENSITY)[0] == math.inf


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(1000), NoiseSchedule.cosine(20)], ids=["linear", "cosine"])
def test_log_normal_takes_each_level_to_the_nearest_timestep(schedule):
    diffusion = Diffusion(schedule)
    alpha, sigma = diffusion.signal_noise()
    levels = np.log(sigma / alpha)
    found = log_normal(diffusion, mean=-0.7, std=0.9)
    assert found.sum() == pytest.approx(1, rel=FLOAT64_PRODUCT)
    # By the quantiles of ln sigma, evenly spaced: each timestep's share to the spacing at its two edges.
    quantiles = stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000, -0.7, 0.9)
    nearest = np.abs(quantiles[::20, None] - levels).argmin(axis=1)
    np.testing.assert_allclose(found, np.bincount(nearest, minlength=len(schedule)) / nearest.size, atol=2 / 20_000)
    edges = (levels[1:] + levels[:-1]) / 2
    expected = np.diff(np.concatenate([[0], stats.norm.cdf(edges, -0.7, 0.9), [1]]))
    np.testing.assert_allclose(found, expected, atol=FLOAT64)


def test_log_normal_is_exact_in_its_tails():
    """Far from the mean a probability keeps its digits, in both directions."""
    diffusion = Diffusion(NoiseSchedule.linear(1000))
    alpha, sigma = diffusion.signal_noise()
    levels = np.log(sigma / alpha)
    mean, std = float(levels[500]), 0.5
    low, high = (np.array([levels[i - 1] + levels[i], levels[i] + levels[i + 1]]) / 2 for i in (5, 995))
    found = log_normal(diffusion, mean, std)
    below = stats.norm.cdf(low[1], mean, std) - stats.norm.cdf(low[0], mean, std)
    above = stats.norm.sf(high[0], mean, std) - stats.norm.sf(high[1], mean, std)
    assert found[5] == pytest.approx(below, rel=FLOAT64_PRODUCT)
    assert found[995] == pytest.approx(above, rel=FLOAT64_PRODUCT)
    assert max(found[5], found[995]) < TINY
    assert min(found[5], found[995]) > 0


def test_log_normal_trains_no_timestep_without_signal():
    found = log_normal(Diffusion(NoiseSchedule.jsd(8), "x0"))
    assert found[-1] == 0
    assert found.sum() == pytest.approx(1, rel=FLOAT64)
    assert log_normal(Diffusion(NoiseSchedule.from_betas([0.5]))).tolist() == [1.0]


def test_loss_history_is_that_of_the_paper():
    """p_t is proportional to sqrt(E[L_t^2]) over the last ten losses, and uniform until each has ten."""
    rng = np.random.default_rng(0)
    history = LossHistory(T)
    kept = [[] for _ in range(T)]
    for _ in range(60):
        timesteps = rng.integers(0, T, 5).tolist()
        losses = rng.exponential(np.arange(1, T + 1)[timesteps]).tolist()
        history.append(timesteps, losses)
        for t, loss in zip(timesteps, losses, strict=True):
            kept[t].append(loss)
        full = min(map(len, kept)) >= 10
        assert history.is_full == full
        second_moments = [math.sqrt(math.fsum(x * x for x in last[-10:]) / 10) for last in kept]
        expected = [0.999 * m / sum(second_moments) + 0.001 / T if full else 1.0 for m in second_moments]
        np.testing.assert_allclose(history.density(), expected, rtol=FLOAT64)
    assert history.is_full


def test_loss_history_of_zeros_is_uniform():
    history = LossHistory(2, length=1)
    history.append([0, 1], [0.0, 0.0])
    assert history.density().tolist() == [1.0, 1.0]
