"""The arrays of a noising chain against naive products and the paper's formulas."""

import numpy as np
import pytest

from fastdiff import NoiseSchedule
from support.tolerances import FLOAT64_DIFFERENCE, FLOAT64_PRODUCT


@pytest.mark.parametrize("name", NoiseSchedule.names())
@pytest.mark.parametrize("num_timesteps", [20, 1000, 4000])
def test_chain_arrays_match_naive_products(name, num_timesteps):
    if name in ("warmup10", "warmup50", "constant") and num_timesteps == 4000:
        num_timesteps = 2000
    schedule = NoiseSchedule.named(name, num_timesteps)
    if name in ("linear", "quadratic") and num_timesteps == 20:
        assert schedule.betas[-1] == pytest.approx(1.0)
    abar = np.cumprod(1 - schedule.betas)
    prev = np.append(1.0, abar[:-1])
    assert schedule.betas.dtype == np.float64
    assert len(schedule) == num_timesteps
    # The product ends in denormal numbers, which have few digits.
    np.testing.assert_allclose(schedule.alphas_cumprod, abar, rtol=FLOAT64_PRODUCT, atol=1e-300)
    np.testing.assert_allclose(schedule.alphas_cumprod_prev, prev, rtol=FLOAT64_PRODUCT)
    inner = abar > 0
    np.testing.assert_allclose(
        schedule.posterior_mean_coef1[inner],
        (schedule.betas * np.sqrt(prev) / (1 - abar))[inner],
        rtol=FLOAT64_DIFFERENCE,
    )
    np.testing.assert_allclose(
        schedule.posterior_mean_coef2[inner],
        (np.sqrt(1 - schedule.betas) * (1 - prev) / (1 - abar))[inner],
        atol=FLOAT64_DIFFERENCE,
    )
    np.testing.assert_allclose(schedule.posterior_variance[0], 0)
    assert schedule.posterior_log_variance_clipped[0] == schedule.posterior_log_variance_clipped[1]
    assert np.isfinite(schedule.posterior_log_variance_clipped).all()
