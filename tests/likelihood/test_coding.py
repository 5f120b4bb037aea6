"""Rate and distortion: made of the bound's terms."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.likelihood.coding import rate_distortion_of
from support.gaussian_networks import gaussian_network
from support.networks import small_pipeline

D = fd.Diffusion(fd.NoiseSchedule.linear(50), "eps", "fixed_large")
MODEL = gaussian_network(D, 0.25)
OPTIONS = {"decoder": "gaussian", "clip": None}
X = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (60, 1, 2, 2)))
DIGITS = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_rate_distortion_is_made_of_the_bound_s_terms():
    result = likelihood.rate_distortion(MODEL, D, X, seed=1, **OPTIONS)
    bound = likelihood.bound(MODEL, D, X, seed=1, **OPTIONS)
    assert result.t.tolist() == list(range(49, -1, -1))
    assert float(result.rate[0]) == pytest.approx(float(bound.prior.mean()))
    assert float(result.rate[-1]) == pytest.approx(result.total_rate)
    assert result.total_rate + result.distortion == pytest.approx(bound.mean)
    # The exact network's error is the posterior's variance.
    a = D.schedule.alphas_cumprod[::-1]
    expected = np.sqrt(0.25 * (1 - a) / (a * 0.25 + 1 - a))
    # Over 240 noisy values: the standard error of a root mean square is 5 %; four of them.
    np.testing.assert_allclose(result.rmse.numpy(), expected, rtol=0.2)
    assert (result.rate.diff() >= 0).all()
    rows = result.rows(5)
    assert rows[0]["t"] == 49
    assert rows[-1]["t"] == 0
    eight_bit = small_pipeline(levels=256).likelihood(DIGITS, method="rate_distortion")
    assert eight_bit.peak == 255
    with pytest.raises(ValueError, match="every term"):
        rate_distortion_of(likelihood.bound(MODEL, D, X, timesteps=[0, 3], **OPTIONS), None)
