"""Estimates of the bound from some of its terms: unbiased, with errors that are what they say."""

import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import likelihood
from support.gaussian_networks import gaussian_network
from support.tolerances import FLOAT64

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(200), "eps", "fixed_large")
OPTIONS = {"decoder": "gaussian", "clip": None}
X = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (4, 1, 4, 4)))


def network():
    return gaussian_network(DIFFUSION, 0.25)


def test_bound_of_chosen_timesteps_has_their_terms():
    full = likelihood.bound(network(), DIFFUSION, X, seed=3, **OPTIONS)
    some = likelihood.bound(network(), DIFFUSION, X, seed=3, timesteps=[100, 0, 7], **OPTIONS)
    assert some.evaluations == 3 * 4
    torch.testing.assert_close(some.terms[:, [0, 7, 100]], full.terms[:, [0, 7, 100]], rtol=FLOAT64, atol=0)
    assert int(torch.isnan(some.terms).sum()) == 4 * 197
    assert torch.isnan(some.sampling_error).all()
    torch.testing.assert_close(full.sampling_error, torch.zeros(4, dtype=torch.float64))


def test_bound_of_chosen_timesteps_is_a_quadrature():
    t = np.unique(np.geomspace(1, 199, 40).round().astype(int))
    full = likelihood.bound(network(), DIFFUSION, X, **OPTIONS)
    some = likelihood.bound(network(), DIFFUSION, X, timesteps=[0, *t.tolist()], **OPTIONS)
    by_hand = np.array([np.interp(np.arange(200), [0, *t], row[[0, *t]]).sum() for row in full.terms.numpy()])
    np.testing.assert_allclose(some.total.numpy(), full.prior.numpy() + by_hand, rtol=FLOAT64)
    # 41 of 200 noisy terms, most of them where the terms are large: near the bound of all of them.
    assert some.mean == pytest.approx(full.mean, abs=0.15)


@pytest.mark.parametrize("allocation", ["importance", "stratified"])
def test_estimate_is_unbiased_with_honest_errors(allocation):
    """Over 80 seeds: no bias beyond its own error, deviations of unit variance, 95 % intervals that hold."""
    scores = []
    for seed in range(80):
        full = likelihood.bound(network(), DIFFUSION, X[:2], seed=seed, batch_size=1000, **OPTIONS)
        some = likelihood.bound_estimate(
            network(), DIFFUSION, X[:2], seed=seed, target_error=1e-9, allocation=allocation, draws=3, max_rounds=10,
            **OPTIONS,
        )  # fmt: skip
        assert some.evaluations < 2 * 200 / 2
        scores.append((some.mean - full.mean) / some.mean_sampling_error)
    # Student's t with about 18 degrees of freedom has the standard deviation 1.06 and 95 % within 2.1.
    assert abs(np.mean(scores)) < 3.5 * 1.06 / math.sqrt(80)
    assert 0.8 < np.std(scores) < 1.4
    assert np.mean(np.abs(scores) < 2.1) > 0.88


def test_estimate_halves_its_error_with_four_times_the_rounds():
    def error(rounds):
        deviations = []
        for seed in range(60):
            full = likelihood.bound(network(), DIFFUSION, X[:1], seed=seed, batch_size=1000, **OPTIONS)
            some = likelihood.bound_estimate(
                network(), DIFFUSION, X[:1], seed=seed, target_error=1e-9, draws=2, max_rounds=rounds, **OPTIONS
            )
            deviations.append(some.mean - full.mean)
        return float(np.sqrt(np.mean(np.square(deviations))))

    # The ratio of two root mean squares of 60 deviations scatters by 13 %.
    assert 1.4 < error(3) / error(12) < 2.9


def test_estimate_stops_at_the_requested_error():
    loose = likelihood.bound_estimate(network(), DIFFUSION, X, target_error=0.1, **OPTIONS)
    tight = likelihood.bound_estimate(network(), DIFFUSION, X, target_error=0.05, **OPTIONS)
    assert 0 < tight.mean_sampling_error <= 0.05
    assert loose.evaluations < tight.evaluations < 4 * 200
    default = likelihood.bound_estimate(network(), DIFFUSION, X, **OPTIONS)
    assert default.mean_sampling_error <= 0.01 * abs(default.mean)


def test_estimate_with_all_terms_is_the_bound():
    full = likelihood.bound(network(), DIFFUSION, X, seed=5, **OPTIONS)
    all_terms = likelihood.bound_estimate(network(), DIFFUSION, X, seed=5, target_error=1e-12, **OPTIONS)
    torch.testing.assert_close(all_terms.total, full.total, rtol=FLOAT64, atol=0)
    assert all_terms.mean_sampling_error == 0
    one = fd.Diffusion(fd.NoiseSchedule.from_betas([0.5]), "x0")
    assert likelihood.bound_estimate(lambda x, t: 0 * x, one, X, **OPTIONS).evaluations == 4


def test_estimate_does_not_depend_on_the_batch_size():
    runs = [
        likelihood.bound_estimate(network(), DIFFUSION, X, target_error=0.1, batch_size=n, **OPTIONS) for n in (5, 999)
    ]
    torch.testing.assert_close(runs[0].total, runs[1].total, rtol=FLOAT64, atol=0)
    assert runs[0].evaluations == runs[1].evaluations


def test_estimate_ends_where_the_network_gives_nan():
    assert math.isnan(likelihood.bound_estimate(lambda x, t: x * math.nan, DIFFUSION, X, **OPTIONS).mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_error": 0}, "target_error"),
        ({"draws": 0}, "draws"),
        ({"draws": 1.5}, "draws"),
        ({"max_rounds": 1}, "max_rounds"),
        ({"allocation": "stratify"}, "did you mean 'stratified'|stratified"),
    ],
)
def test_estimate_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        likelihood.bound_estimate(network(), DIFFUSION, X, **OPTIONS, **options)


@pytest.mark.parametrize("timesteps", [[], [0, 0], [200], [-1], [0.5]])
def test_bound_refuses_timesteps(timesteps):
    with pytest.raises(ValueError, match="timesteps"):
        likelihood.bound(network(), DIFFUSION, X, timesteps=timesteps, **OPTIONS)


def test_estimate_stops_near_the_requested_error_in_few_calls_of_the_network():
    """A loose target takes no more than two draws per image, and many of them share a batch."""
    x = torch.from_numpy(np.random.default_rng(1).normal(0, 0.5, (64, 1, 4, 4)))
    sizes = []

    def counted(v, t):
        sizes.append(len(v))
        return network()(v, t)

    loose = likelihood.bound_estimate(counted, DIFFUSION, x, target_error=1.0, **OPTIONS)
    assert loose.evaluations == sum(sizes) <= 64 * 3 + 8 * 12
    tight = likelihood.bound_estimate(network(), DIFFUSION, x, target_error=0.05, **OPTIONS)
    assert 0.04 < tight.mean_sampling_error <= 0.05
    sizes.clear()
    one = likelihood.bound_estimate(counted, DIFFUSION, x[:1], target_error=0.2, **OPTIONS)
    assert 0.15 < one.mean_sampling_error <= 0.2
    assert one.evaluations > 20
    assert len(sizes) <= 7


@pytest.mark.parametrize("count", [1, 4])
def test_estimate_that_stops_by_itself_is_unbiased(count):
    """Stopping early where the draws happen to agree would show here, were it more than noise."""
    scores = []
    for seed in range(100):
        full = likelihood.bound(network(), DIFFUSION, X[:count], seed=seed, batch_size=1000, **OPTIONS)
        some = likelihood.bound_estimate(network(), DIFFUSION, X[:count], seed=seed, target_error=0.2, **OPTIONS)
        scores.append((some.mean - full.mean) / some.mean_sampling_error)
    assert abs(np.mean(scores)) < 3.5 * 1.06 / math.sqrt(100)
    assert np.mean(np.abs(scores) < 2.1) > 0.88
