"""The Brownian path: its variance, and what it is a function of."""

import math

import pytest
import torch

from fastdiff.compat import k_diffusion as k


def test_brownian_path_has_independent_increments_of_variance_one():
    x = torch.zeros(64, 3, 16, 16)
    path = k.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=5)
    whole, first, second = path(10.0, 0.1), path(10.0, 3.0), path(3.0, 0.1)
    for z in (whole, first, second, path(0.2, 0.1001), path(7.123, 7.12)):
        # The standard error of a mean or variance of 49152 numbers is below 0.0065.
        assert abs(float(z.mean())) < 0.02
        assert abs(float(z.var()) - 1) < 0.03
    assert abs(float((first * second).mean())) < 0.02
    # The parts add up, each by the root of its length.
    torch.testing.assert_close(
        math.sqrt(9.9) * whole, math.sqrt(7.0) * first + math.sqrt(2.9) * second, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(path(3.0, 10.0), -first)
    per_sample = path(torch.full((64,), 10.0), torch.full((64,), 3.0))
    torch.testing.assert_close(per_sample, first)


def test_brownian_path_is_a_function_of_seed_sample_and_level():
    x = torch.zeros(3, 2, 8, 8)
    one_by_one = k.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=[4, 9, 4])
    together = k.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=4)
    again = k.BrownianTreeNoiseSampler(x[:2], 0.1, 10.0, seed=4)
    again(0.3, 0.2)
    assert torch.equal(together(5.0, 1.0)[:2], again(5.0, 1.0))
    z = one_by_one(5.0, 1.0)
    assert torch.equal(z[0], z[2])
    assert torch.equal(z[0], together(5.0, 1.0)[0])
    assert not torch.equal(z[0], z[1])
    torch.manual_seed(1)
    drawn = k.BrownianTreeNoiseSampler(x, 0.1, 10.0)(5.0, 1.0)
    torch.manual_seed(1)
    assert torch.equal(drawn, k.BrownianTreeNoiseSampler(x, 0.1, 10.0)(5.0, 1.0))
    in_log = k.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=4, transform=torch.log)
    assert not torch.allclose(in_log(5.0, 1.0), together(5.0, 1.0))
    with pytest.raises(ValueError, match="one seed per sample, 3, got 2"):
        k.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=[1, 2])
    with pytest.raises(ValueError, match="within the path's"):
        together(20.0, 1.0)
