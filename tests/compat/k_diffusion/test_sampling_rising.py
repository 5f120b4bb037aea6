"""The samplers from data to noise, and the density along the way: updates written out, and Gaussian data."""

import math
from itertools import pairwise

import pytest
import torch

from fastdiff.compat import k_diffusion as k
from support.k_diffusion_runs import SAME_RUN, TO_SIGMA_MIN, one, start

RISING = TO_SIGMA_MIN.flip(0)


def image():
    return start() / 40


def exponential(x, sigmas, order):
    """Multistep DPM-Solver++ in t = -log sigma, with D extrapolated from its last values."""
    t, past = -sigmas.log(), []
    for i in range(len(sigmas) - 1):
        past.append(one(x, sigmas[i]))
        h = t[i + 1] - t[i]
        d = past[-1]
        if order == 2 and i > 0:
            d = d + (past[-1] - past[-2]) * h / (t[i] - t[i - 1]) / 2
        x = torch.exp(-h) * x - torch.expm1(-h) * d
        if order == 3 and i > 0:
            first = (past[-1] - past[-2]) / ((t[i] - t[i - 1]) / h)
            bend = torch.zeros_like(x)
            if i > 1:
                r0, r1 = (t[i] - t[i - 1]) / h, (t[i - 1] - t[i - 2]) / h
                second = (past[-2] - past[-3]) / r1
                bend = (first - second) / (r0 + r1)
                first = first + bend * r0
            phi_2 = torch.expm1(-h) / h + 1
            x = x + phi_2 * first
            if i > 1:
                x = x - (phi_2 / h - 0.5) * bend
    return x


def middle(x, sigmas):
    """DPM-Solver++(2S): the second evaluation alone counts."""
    for a, b in pairwise(sigmas):
        c = (a * b).sqrt()
        there = c / a * x + (1 - c / a) * one(x, a)
        x = b / a * x + (1 - b / a) * one(there, c)
    return x


@pytest.mark.parametrize(
    ("sampler", "expected", "options"),
    [
        (k.sample_euler_ancestral, lambda x: exponential(x, RISING, 1), {"eta": 0.0}),
        (k.sample_dpm_2_ancestral, lambda x: k.sample_dpm_2(one_of, x, RISING), {"eta": 0.0}),
        (k.sample_dpmpp_2s_ancestral, lambda x: middle(x, RISING), {"eta": 0.0}),
        (k.sample_dpmpp_sde, lambda x: middle(x, RISING), {"eta": 0.0}),
        (k.sample_dpmpp_2m, lambda x: exponential(x, RISING, 2), {}),
        (k.sample_dpmpp_2m_sde, lambda x: exponential(x, RISING, 2), {"eta": 0.0}),
        (k.sample_dpmpp_3m_sde, lambda x: exponential(x, RISING, 3), {"eta": 0.0}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_samplers_run_from_data_to_noise(sampler, expected, options):
    x = sampler(one_of, image(), RISING, **options)
    torch.testing.assert_close(x, expected(image()), rtol=SAME_RUN, atol=SAME_RUN)


def one_of(x, sigma):
    return one(x, sigma[0])


def test_samplers_draw_on_the_way_to_noise_as_often_as_there():
    """A draw a step for the ancestral ones, two for dpmpp_sde, none where eta = 0 draws none."""
    for sampler, draws in (
        (k.sample_euler_ancestral, 1), (k.sample_dpm_2_ancestral, 1), (k.sample_dpmpp_2s_ancestral, 1),
        (k.sample_dpmpp_sde, 2), (k.sample_dpmpp_2m_sde, 0), (k.sample_dpmpp_3m_sde, 0),
    ):  # fmt: skip
        seen = []
        sampler(one_of, image(), RISING, eta=0.0, noise_sampler=lambda a, b, seen=seen: seen.append(1) or image())
        assert len(seen) == draws * (len(RISING) - 1)


@pytest.mark.parametrize(
    "sampler",
    [k.sample_euler_ancestral, k.sample_dpm_2_ancestral, k.sample_dpmpp_2s_ancestral, k.sample_dpmpp_sde,
     k.sample_dpmpp_2m_sde, k.sample_dpmpp_3m_sde],
)  # fmt: skip
def test_samplers_refuse_noise_on_the_way_to_noise(sampler):
    with pytest.raises(ValueError, match="eta must be 0"):
        sampler(one_of, image(), RISING)


def test_log_likelihood_is_that_of_gaussian_data():
    low, high, variance = 0.1, 60.0, 0.3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=generator) * math.sqrt(variance + low**2)

    def denoiser(y, sigma, gain):
        return gain.view(-1, 1, 1, 1) * variance / (variance + sigma.view(-1, 1, 1, 1) ** 2) * y

    given = {"gain": torch.ones(3, dtype=torch.float64)}
    # Small steps, so that what the prior leaves out is the larger error.
    found, info = k.sampling.log_likelihood(denoiser, x, low, high, extra_args=given, atol=1e-7, rtol=1e-7)
    expected = torch.distributions.Normal(0.0, math.sqrt(variance + low**2)).log_prob(x).flatten(1).sum(1)
    # The state at the last level has the data's variance as well, which the prior leaves out: 0.3 / 60^2 of it.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    assert info["fevals"] > 10
    alone, _ = k.sampling.log_likelihood(denoiser, x[:1], low, high, extra_args={"gain": given["gain"][:1]}, atol=1e-7)
    # Other tolerances of a step.
    torch.testing.assert_close(alone, found[:1], rtol=1e-4, atol=1e-4)
