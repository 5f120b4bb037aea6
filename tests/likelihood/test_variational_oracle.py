"""The bound of Gaussian data, term by term, in closed form."""

import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.ops.reference.bound import BoundTable, discretized_gaussian_log_likelihood, variational_terms
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from support.gaussian_networks import gaussian_network
from support.tolerances import FLOAT64_PRODUCT

LN2 = math.log(2)


def closed_form(diffusion, variance, x, seed):
    """Prior and terms, [B] and [B, T], of the exact network at the contract's noise, in NumPy over all t at once."""
    s, (batch, dims) = diffusion.schedule, x.shape
    a, prev, beta = (v[:, None] for v in (s.alphas_cumprod, s.alphas_cumprod_prev, s.betas))
    posterior = beta * (1 - prev) / (1 - a)
    posterior[0] = posterior[1]
    reverse = posterior.copy() if diffusion.variance == "fixed_small" else beta.copy()
    reverse[0] = posterior[1]
    terms = np.empty((batch, len(s)))
    for i in range(batch):
        z = noise.normals(seed, np.full(len(s), i), dims, Stream.LIKELIHOOD, np.arange(len(s)))
        x_t = np.sqrt(a) * x[i] + np.sqrt(1 - a) * z
        # E[x_0 | x_t] of a Gaussian prior.
        error = x[i] - np.sqrt(a) * variance / (a * variance + 1 - a) * x_t
        coefficient = beta * np.sqrt(prev) / (1 - a)
        ratio = posterior / reverse
        nats = 0.5 * (ratio - 1 - np.log(ratio) + (coefficient * error) ** 2 / reverse)
        nats[0] = 0.5 * np.log(2 * np.pi * reverse[0]) + error[0] ** 2 / (2 * reverse[0])
        terms[i] = nats.mean(axis=1) / LN2
    prior = 0.5 * (a[-1] * x**2 - a[-1] - np.log1p(-a[-1])).mean(axis=1) / LN2
    return prior, terms


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("num_timesteps", [1000, 4000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bound_of_gaussian_data_is_the_closed_form(schedule, num_timesteps, variance):
    diffusion = fd.Diffusion(fd.NoiseSchedule.named(schedule, num_timesteps), "eps", variance)
    for data_variance in (0.1, 0.25, 1.0, 2.0):
        x = np.random.default_rng(0).normal(0, math.sqrt(data_variance), (2, 6))
        found = likelihood.bound(
            gaussian_network(diffusion, data_variance), diffusion, torch.from_numpy(x), clip=None, decoder="gaussian",
            seed=3, batch_size=8000,
        )  # fmt: skip
        prior, terms = closed_form(diffusion, data_variance, x, 3)
        # Bits/dim, far below what anyone reads; the contract's normals hold to a few float32 ulp.
        np.testing.assert_allclose(found.prior.numpy(), prior, rtol=0, atol=1e-6)
        # The noise is the contract's within a few float32 ulp, times (SNR of t = 1) for the decoder's term.
        np.testing.assert_allclose(found.terms.numpy(), terms, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.total.numpy(), prior + terms.sum(axis=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_timesteps", [1000, 4000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bound_of_unit_variance_telescopes(schedule, num_timesteps):
    """L_T + sum of L_t over t > 0 is 0.5 log2(1 / beta_1) in expectation, exactly, for s^2 = 1 and fixed_large."""
    diffusion = fd.Diffusion(fd.NoiseSchedule.named(schedule, num_timesteps), "eps", "fixed_large")
    table = BoundTable.build(diffusion, dtype=torch.float64)
    t = torch.arange(1, num_timesteps)
    # The mean squared error of the exact x_0 is 1 - abar_t; any x_0 and prediction so far apart have the expected term.
    x0 = torch.zeros(len(t), 1, dtype=torch.float64)
    predicted = torch.from_numpy(np.sqrt(diffusion.schedule.one_minus_alphas_cumprod[1:]))[:, None]
    terms = variational_terms(x0, t, predicted, table.log_variance(t, x0), table, decoder="gaussian")
    prior = float(likelihood.prior_term(diffusion, torch.ones(1, 1, dtype=torch.float64)))
    expected = 0.5 * math.log2(1 / diffusion.schedule.betas[0])
    assert prior + float(terms.sum()) == pytest.approx(expected, rel=FLOAT64_PRODUCT)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_decoder_s_probabilities_sum_to_one(levels):
    grid = (2.0 * torch.arange(levels, dtype=torch.float64) - (levels - 1)) / (levels - 1)
    for mean in (-30.0, -1.0, -0.3, 0.0, 1 / 255, 0.999, 5.0):
        for log_std in (-12.0, -6.0, -3.0, 0.0, 4.0):
            at = torch.full_like(grid, mean), torch.full_like(grid, log_std)
            logs = discretized_gaussian_log_likelihood(grid, *at, levels=levels)
            # Each probability is accurate to float32's last digit.
            assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-6)
