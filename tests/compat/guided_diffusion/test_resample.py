"""Timesteps drawn by their losses."""

import numpy as np
import pytest
import torch

from fastdiff.compat.guided_diffusion import resample
from support.guided_process import T, process


def test_loss_second_moment_resampler_weighs_by_root_mean_squares():
    sampler = resample.create_named_schedule_sampler("loss-second-moment", process())
    assert sampler.weights().tolist() == [1.0] * T
    for repeat in range(11):
        sampler.update_with_all_losses(list(range(T)), [t * (1 if repeat else 100) for t in range(T)])
    expected = np.arange(T) / np.arange(T).sum() * 0.999 + 0.001 / T
    np.testing.assert_allclose(sampler.weights(), expected)
    np.random.seed(0)  # noqa: NPY002
    t, weights = sampler.sample(4000, "cpu")
    counts = torch.bincount(t, minlength=T) / 4000
    # The standard deviation of a share is below 0.008.
    np.testing.assert_allclose(counts, expected, atol=0.04)
    # Their weights are float32.
    np.testing.assert_allclose(weights, 1 / (T * expected[t.numpy()]), rtol=1e-6)
    with pytest.raises(NotImplementedError, match="unknown schedule sampler"):
        resample.create_named_schedule_sampler("fast", process())
