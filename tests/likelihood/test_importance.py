"""The importance-weighted bound, comparisons, rate and distortion, and reports."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import likelihood
from support.gaussian_networks import gaussian_network
from support.networks import small_unet

LN2 = math.log(2)
D = fd.Diffusion(fd.NoiseSchedule.linear(50), "eps", "fixed_large")
MODEL = gaussian_network(D, 0.25)
OPTIONS = {"decoder": "gaussian", "clip": None}
X = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (60, 1, 2, 2)))


def chain_bits(diffusion, variance, x):
    """-log of the generative chain's own density: with the exact network the chain is linear and Gaussian."""
    s = diffusion.schedule
    state = 1.0
    for t in range(len(s) - 1, -1, -1):
        a = s.alphas_cumprod[t]
        gain = np.sqrt(a) * variance / (a * variance + 1 - a)
        step = s.posterior_mean_coef1[t] * gain + s.posterior_mean_coef2[t]
        state = step**2 * state + (s.betas[t] if t else s.posterior_variance[1])
    return (0.5 * np.log(2 * np.pi * state) + 0.5 * (x**2).flatten(1).mean(dim=1) / state) / LN2


def test_iwae_lies_between_the_bound_and_the_truth_and_falls_with_k():
    result = likelihood.iwae(MODEL, D, X, trajectories=32, batch_size=2000, **OPTIONS)
    assert result.evaluations == 60 * 32 * 50
    truth = float(chain_bits(D, 0.25, X).mean())
    by_count = [float(result.with_trajectories(k).mean()) for k in (1, 2, 8, 32)]
    assert all(early > late for early, late in pairwise(by_count))
    # One trajectory is the variational bound, drawn otherwise.
    seeds = [likelihood.bound(MODEL, D, X, seed=seed, batch_size=3000, **OPTIONS).total for seed in range(16)]
    each, ours = torch.stack(seeds), result.log_weights / -(4 * LN2)
    error = math.sqrt(sum(float(a.var(dim=dim).mean()) / a.numel() for a, dim in ((each, 0), (ours, 1))))
    assert abs(by_count[0] - float(each.mean())) < 4 * error
    assert error < 0.05
    assert truth - 0.02 < by_count[-1] < by_count[0] - 0.02
    assert by_count[-1] - truth < 0.6 * (by_count[0] - truth)


def test_iwae_weights_average_to_the_likelihood():
    """The mean weight is unbiased: for one dimension and many trajectories it is the chain's own density."""
    x = torch.tensor([[0.3], [-0.9]], dtype=torch.float64)
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(100), "v", "fixed_large").respace(8)
    model = gaussian_network(diffusion, 0.25)
    result = likelihood.iwae(model, diffusion, x, trajectories=4000, batch_size=8000, **OPTIONS)
    weights = (result.log_weights - result.log_weights.amax(dim=1, keepdim=True)).exp()
    error = weights.std(dim=1) / weights.mean(dim=1) / math.sqrt(4000)
    expected = chain_bits(diffusion, 0.25, x)
    assert float(((result.total - expected).abs() * LN2 / error).max()) < 4


def test_iwae_does_not_depend_on_the_batch():
    net, diffusion = small_unet(), fd.Diffusion(fd.NoiseSchedule.cosine(6), "eps", "fixed_large")
    x = torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = likelihood.iwae(net, diffusion, x, levels=17, trajectories=3)
    split = likelihood.iwae(net, diffusion, x[1:], levels=17, trajectories=5, sample_ids=[1, 2], batch_size=4)
    # float32, and log-weights of hundreds of nats.
    torch.testing.assert_close(split.log_weights[:, :3], whole.log_weights[1:], rtol=1e-4, atol=1e-2)
    for wrong in (0, -3, 1.5, math.nan, "8", None, True):
        with pytest.raises(ValueError, match="trajectories"):
            likelihood.iwae(net, diffusion, x, levels=17, trajectories=wrong)
    with pytest.raises(ValueError, match="cdf"):
        likelihood.iwae(net, diffusion, x, levels=17, cdf="exakt")
    with pytest.raises(ValueError, match="count"):
        whole.with_trajectories(4)
