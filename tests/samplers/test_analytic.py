"""Analytic reverse variances and optimal timesteps against exact marginals, brute force and the measured bound."""

import itertools
import math
import time
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import Diffusion, NoiseSchedule, likelihood
from fastdiff.process.diffusion import Prediction
from fastdiff.samplers import SPACINGS, ddim, ddpm, spaced_indices
from fastdiff.samplers.analytic import (
    StepVariance,
    analytic_ddim,
    analytic_ddpm,
    gaussian_eps_error,
    gaussian_eps_moment,
    optimal_timesteps,
    path_cost,
    step_costs,
)
from support.gaussian_tables import network_gains, run_table
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
DATA_VARIANCE = 0.25
VARIANCES = get_args(StepVariance)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_analytic_variance_reproduces_the_marginals_row_by_row(schedule, eta, spacing):
    """For Gaussian data the reverse step is Gaussian with the analytic variance, on any subset of the timesteps."""
    for prediction in get_args(Prediction):
        diffusion = Diffusion(SCHEDULES[schedule], prediction)
        moment = gaussian_eps_moment(diffusion, DATA_VARIANCE)
        table = analytic_ddim(diffusion, 23, eta=eta, eps_moment=moment, spacing=spacing, clip=None, data_bound=None)
        variances, _ = run_table(table, diffusion)
        expected = table.alphas**2 * DATA_VARIANCE + table.sigmas**2
        # alpha of the cosine schedule ends at 5e-5, which amplifies the rounding of 1 - moment and of px + pm m.
        np.testing.assert_allclose(variances[:-1], expected[1:-1], rtol=1e-7)
        # The last row gives the mean: the variance that is left out is that of x0 given the last state.
        left = DATA_VARIANCE * table.sigmas[-2] ** 2 / expected[-2]
        # The variance that is left out is a difference as small as the last level.
        assert variances[-1] == pytest.approx(DATA_VARIANCE - left, rel=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_analytic_variance_is_the_papers_formula(schedule):
    """Theorem 1 in the paper's symbols: the score's moment Gamma, lambda, alpha-bar and beta-bar."""
    diffusion = Diffusion(SCHEDULES[schedule])
    moment = np.random.default_rng(0).uniform(0.3, 0.99, 1000)
    indices = spaced_indices(1000, 20)
    abar = diffusion.schedule.alphas_cumprod[indices]
    prev, gamma = np.append(1, abar[:-1]), moment[indices] / (1 - abar)
    for eta in (0.0, 1.0):
        table = analytic_ddim(diffusion, 20, eta=eta, eps_moment=moment, data_bound=None)
        lambda2 = eta**2 * (1 - prev) / (1 - abar) * (1 - abar / prev)
        slope = np.sqrt((1 - abar) / (abar / prev)) - np.sqrt(1 - prev - lambda2)
        paper = lambda2 + slope**2 * (1 - (1 - abar) * gamma)
        np.testing.assert_allclose(table["s"][:-1] ** 2, paper[:0:-1], rtol=FLOAT64_DIFFERENCE)


def test_analytic_variance_lies_within_its_bounds():
    """Theorem 2: from lambda^2, where nothing is unknown, to beta / alpha on DDPM's chain, where all of x0 is."""
    diffusion = Diffusion(SCHEDULES["linear"], variance="fixed_small")
    chosen = diffusion.subset(spaced_indices(1000, 20)).schedule
    small = analytic_ddpm(diffusion, 20, eps_moment=np.ones(1000))
    large = analytic_ddpm(diffusion, 20, eps_moment=np.zeros(1000), data_bound=None)
    np.testing.assert_allclose(small["s"], ddpm(diffusion, 20)["s"], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
    np.testing.assert_allclose(large["s"][:-1] ** 2, (chosen.betas / chosen.alphas)[:0:-1], rtol=FLOAT64_DIFFERENCE)
    bounded = analytic_ddpm(diffusion, 20, eps_moment=np.zeros(1000), data_bound=0.5)
    snr = chosen.alphas_cumprod / chosen.one_minus_alphas_cumprod
    v = np.minimum(1 / snr, 0.25)
    expected = chosen.posterior_variance + chosen.posterior_mean_coef1**2 * v
    np.testing.assert_allclose(bounded["s"][:-1] ** 2, expected[:0:-1], rtol=FLOAT64_DIFFERENCE)
    # An estimate above 1 says no more than 1.
    above = analytic_ddpm(diffusion, 20, eps_moment=np.full(1000, 1.01))
    np.testing.assert_array_equal(above["s"], small["s"])


@pytest.mark.parametrize("clip", [None, 1.0])
def test_analytic_identities(clip):
    diffusion = Diffusion(SCHEDULES["cosine"], "v")
    moment = gaussian_eps_moment(diffusion, [0.1, 0.6])
    a = analytic_ddim(diffusion, 15, eta=1.0, eps_moment=moment, clip=clip)
    b = analytic_ddpm(diffusion, 15, eps_moment=moment, clip=clip)
    for name in a.columns:
        np.testing.assert_array_equal(a[name], b[name])
    # The means are those of DDIM and of DDPM: only the noise differs.
    for ours, plain in ((b, ddpm(diffusion, 15, clip=clip)), (None, ddim(diffusion, 15, clip=clip))):
        table = ours or analytic_ddim(diffusion, 15, eps_moment=moment, clip=clip)
        for name in ("t", "px", "pm", "clip", "cx", "c0"):
            np.testing.assert_allclose(table[name], plain[name], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
        assert (table["s"][:-1] > plain["s"][:-1]).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_analytic_variance_keeps_the_mean_square_of_data_that_is_not_isotropic(eta):
    """Two variances, each with its exact network: from the exact marginal, each row's variance is exact on average.

    The fixed variances are not.
    """
    spectrum = [0.05, 1.0]
    diffusion = Diffusion(SCHEDULES["cosine"])
    moment = gaussian_eps_moment(diffusion, spectrum)
    table = analytic_ddim(diffusion, 10, eta=eta, eps_moment=moment, clip=None, data_bound=None)
    tables = {"small": ddpm(diffusion, 10, clip=None), "large": ddpm(diffusion, 10, clip=None, variance="fixed_large")}
    for row in range(9):

        def mean_square(table, row=row):
            reached = 0.0
            for v in spectrum:
                gain = network_gains(diffusion, table["t"][row], v)
                gain = table["cx"][row] + table["c0"][row] * (table["px"][row] + table["pm"][row] * gain)
                start = table.alphas[row] ** 2 * v + table.sigmas[row] ** 2
                reached += (gain**2 * start + table["s"][row] ** 2) / len(spectrum)
            return reached

        exact = table.alphas[row + 1] ** 2 * np.mean(spectrum) + table.sigmas[row + 1] ** 2
        # alpha of the cosine schedule ends at 5e-5, which amplifies the rounding of 1 - moment.
        assert mean_square(table) == pytest.approx(exact, rel=1e-7)
        if row > 0:
            assert all(abs(mean_square(other) - exact) > 0.005 for other in tables.values())


def test_analytic_where_no_signal_is_left():
    """The unknown part of x0 at pure noise cannot come from eps; the data's bound stands in."""
    diffusion = Diffusion(NoiseSchedule.jsd(10), "v")
    moment = gaussian_eps_moment(diffusion, DATA_VARIANCE)
    table = analytic_ddpm(diffusion, eps_moment=moment)
    assert np.isfinite(table["s"]).all()
    with pytest.raises(ValueError, match="give data_bound"):
        analytic_ddpm(diffusion, eps_moment=moment, data_bound=None)


def test_gaussian_statistics_add_up_to_one():
    diffusion = Diffusion(SCHEDULES["cosine"])
    for values in (0.25, [0.1, 0.5, 2.0], 0.0):
        moment, error = gaussian_eps_moment(diffusion, values), gaussian_eps_error(diffusion, values)
        np.testing.assert_allclose(moment + error, 1, rtol=FLOAT64)
        assert (np.diff(moment) >= 0).all()
    np.testing.assert_allclose(
        gaussian_eps_moment(diffusion, [0.1, 0.5]),
        (gaussian_eps_moment(diffusion, 0.1) + gaussian_eps_moment(diffusion, 0.5)) / 2,
        rtol=FLOAT64,
    )


@pytest.mark.parametrize("levels", [None, 17])
@pytest.mark.parametrize("variance", VARIANCES)
def test_optimal_timesteps_equal_brute_force(variance, levels):
    """All subsets of T = 8 that contain T-1."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        diffusion = Diffusion(NoiseSchedule.from_betas(rng.uniform(0.01, 0.6, 8)))
        error = rng.uniform(0.01, 1.0, 8)
        costs, last = step_costs(diffusion, error, variance=variance, levels=levels)
        for steps in range(1, 9):
            best = min(path_cost(costs, last, (*rest, 7)) for rest in itertools.combinations(range(7), steps - 1))
            chosen = optimal_timesteps(diffusion, error, steps, variance=variance, levels=levels)
            assert len(chosen) == steps
            assert chosen[-1] == 7
            assert path_cost(costs, last, chosen) == pytest.approx(best, rel=FLOAT64), (trial, steps)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_optimal_timesteps_beat_every_spacing(schedule, variance):
    diffusion = Diffusion(SCHEDULES[schedule])
    error = gaussian_eps_error(diffusion, [0.005, 0.02, 0.1, 2.0])
    costs, last = step_costs(diffusion, error, variance=variance, data_bound=None)
    for steps in (5, 20, 50):
        chosen = optimal_timesteps(diffusion, error, steps, variance=variance, data_bound=None)
        best = path_cost(costs, last, chosen)
        for spacing in ("trailing", "linspace"):
            # Bits that show at all.
            assert best < path_cost(costs, last, spaced_indices(1000, steps, spacing)) - 0.001
        # Any sampler takes them.
        assert ddpm(diffusion, timesteps=chosen)["t"].tolist() == chosen[::-1]


def test_optimal_timesteps_more_steps_cost_no_more():
    """With the best variance a step never pays for being left out."""
    diffusion = Diffusion(NoiseSchedule.cosine(100))
    error = gaussian_eps_error(diffusion, [0.01, 1.0])
    costs, last = step_costs(diffusion, error, variance="analytic", data_bound=None)
    bounds = [
        path_cost(costs, last, optimal_timesteps(diffusion, error, n, variance="analytic", data_bound=None))
        for n in range(1, 101)
    ]
    assert (np.diff(bounds) <= FLOAT64).all()


def test_optimal_timesteps_tie_for_gaussian_data_with_the_best_variance():
    """Every chain is exact then, so every bound is the entropy less what the prior's term holds."""
    diffusion = Diffusion(SCHEDULES["linear"])
    costs, last = step_costs(
        diffusion, gaussian_eps_error(diffusion, DATA_VARIANCE), variance="analytic", data_bound=None
    )
    rng = np.random.default_rng(0)
    a = diffusion.schedule.alphas_cumprod[-1]
    # Entropy of x0 given x_T: that of x0, with its variance less the little that x_T says.
    left = DATA_VARIANCE * (1 - a) / (a * DATA_VARIANCE + 1 - a)
    for steps in (1, 2, 30, 1000):
        path = [*sorted(rng.choice(999, steps - 1, replace=False)), 999]
        assert path_cost(costs, last, path) == pytest.approx(
            0.5 * math.log2(2 * math.pi * math.e * left), rel=FLOAT64_DIFFERENCE
        )


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("path", [[3, 11, 17, 30, 49], [20, 49]], ids=str)
def test_path_cost_is_the_expected_bound_of_the_respaced_chain(path, variance):
    """Against likelihood.bound, measured on Gaussian data with the exact network."""
    diffusion = Diffusion(NoiseSchedule.linear(50), variance=variance)
    chain = diffusion.subset(path)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (800, 1, 8, 8)))

    def model(x, t):
        return torch.from_numpy(network_gains(diffusion, t.numpy(), DATA_VARIANCE)).reshape(-1, 1, 1, 1) * x

    b = likelihood.bound(model, chain, x, decoder="gaussian", clip=None)
    terms = b.terms.sum(dim=1)
    error = gaussian_eps_error(diffusion, DATA_VARIANCE)
    expected = path_cost(*step_costs(diffusion, error, variance=variance, data_bound=None), path)
    spread = float(terms.std()) / math.sqrt(len(terms))
    assert spread < 0.02 * abs(expected)
    assert abs(float(terms.mean()) - expected) < 4 * spread


def test_step_costs_of_coded_values_are_those_of_the_density_for_many_values():
    """A value's code length is the density's less the log of a value's width."""
    diffusion = Diffusion(NoiseSchedule.linear(50))
    error = gaussian_eps_error(diffusion, DATA_VARIANCE)
    for variance in VARIANCES:
        costs, density = step_costs(diffusion, error, variance=variance)
        same, coded = step_costs(diffusion, error, variance=variance, levels=65_536)
        np.testing.assert_array_equal(costs, same)
        where = np.isfinite(density)
        # The density over a bin of 65,536 is not quite constant.
        np.testing.assert_allclose(coded[where], density[where] + math.log2(65_535 / 2), atol=1e-4)
    # Without the width a certain network would code for nothing.
    _, certain = step_costs(diffusion, np.zeros(50), variance="analytic", levels=256)
    assert (certain[np.isfinite(certain)] >= 0.2).all()


def test_optimal_timesteps_take_less_than_a_second():
    diffusion = Diffusion(SCHEDULES["cosine"])
    error = gaussian_eps_error(diffusion, [0.01, 1.0])
    start = time.process_time()
    optimal_timesteps(diffusion, error, 50)
    assert time.process_time() - start < 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_analytic_holds_its_invariants(data):
    num_timesteps = data.draw(st.integers(1, 40))
    betas = data.draw(st.lists(st.floats(1e-6, 0.3), min_size=num_timesteps, max_size=num_timesteps))
    diffusion = Diffusion(NoiseSchedule.from_betas(betas), data.draw(st.sampled_from(get_args(Prediction))))
    moment = data.draw(st.lists(st.floats(0, 1.5), min_size=num_timesteps, max_size=num_timesteps))
    bound = data.draw(st.sampled_from([None, 0.5, 1.0]))
    steps = data.draw(st.integers(1, num_timesteps))
    table = analytic_ddim(
        diffusion,
        steps,
        eta=data.draw(st.floats(0, 1)),
        eps_moment=moment,
        spacing=data.draw(st.sampled_from(SPACINGS)),
        data_bound=bound,
    )
    assert table.num_evaluations == len(table) == steps
    assert table["s"][-1] == 0
    assert (np.diff(table["t"]) < 0).all()
    variance = data.draw(st.sampled_from(VARIANCES))
    chosen = optimal_timesteps(diffusion, moment, steps, variance=variance, levels=256, data_bound=bound)
    assert len(chosen) == steps
    assert spaced_indices(num_timesteps, timesteps=chosen) == chosen
    assert chosen[-1] == num_timesteps - 1


DIFFUSION = Diffusion(NoiseSchedule.cosine(10))
ONES = np.ones(10)
BAD = {
    "no moment": (analytic_ddpm, {}, "eps_moment is needed.*fastdiff.estimate.eps_moment"),
    "short moment": (analytic_ddpm, {"eps_moment": [1.0]}, r"one entry per timestep \(10\)"),
    "nan moment": (analytic_ddpm, {"eps_moment": np.full(10, np.nan)}, "finite and not negative, got nan at t = 0"),
    "moment": (analytic_ddpm, {"eps_moment": -ONES}, "not negative"),
    "bound": (analytic_ddpm, {"eps_moment": ONES, "data_bound": 0}, "data_bound must be"),
    "clip": (analytic_ddpm, {"eps_moment": ONES, "clip": 0}, "clip must be"),
    "steps": (analytic_ddpm, {"eps_moment": ONES, "steps": 11}, "steps must be"),
    "eta": (analytic_ddim, {"eps_moment": ONES, "eta": 1.5}, r"eta must be in \[0, 1\]"),
    "data variance": (gaussian_eps_moment, {"data_variance": -1.0}, "data_variance must be"),
    "no data variance": (gaussian_eps_error, {"data_variance": []}, "data_variance must be"),
    "many steps": (optimal_timesteps, {"eps_error": ONES, "steps": 11}, "from 1 to 10"),
    "no steps": (optimal_timesteps, {"eps_error": ONES, "steps": 0}, "from 1 to 10"),
    "error": (optimal_timesteps, {"eps_error": -ONES, "steps": 2}, "not negative"),
    "variance": (step_costs, {"eps_error": ONES, "variance": "analytc"}, "did you mean 'analytic'"),
    "levels": (step_costs, {"eps_error": ONES, "levels": 1}, "levels must be"),
    "certain": (step_costs, {"eps_error": 0 * ONES, "variance": "analytic"}, "eps_error is 0 at t = 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_analytic_refuses(case):
    builder, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        builder(DIFFUSION, **options)
