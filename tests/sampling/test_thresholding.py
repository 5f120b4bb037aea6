"""Dynamic thresholding against diffusers, between the network and the step."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from support.tolerances import PEER_RUN

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(100, 1e-3, 0.2))


def test_dynamic_threshold_matches_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.7)
    x0 = 2 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = fd.DynamicThreshold(0.9, 1.7).threshold(x0)
    torch.testing.assert_close(ours, scheduler._threshold_sample(x0))
    assert fd.DynamicThreshold().threshold(x0[:0]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp", "unipc"])
def test_dynamic_threshold_stands_between_model_and_step(name):
    table = fd.samplers.build(name, DIFFUSION, 6, clip=None)
    threshold = fd.DynamicThreshold(0.8)
    seen = []
    fd.sample(lambda x, t: 0.1 * x, table, shape=(2, 1, 8, 8), progress=False, threshold=threshold,
              callback=lambda step: seen.append(step.prediction.clone()))  # fmt: skip
    assert all(float(p.abs().max()) <= 1 + PEER_RUN for p in seen)
    free = []
    fd.sample(lambda x, t: 0.1 * x, table, shape=(2, 1, 8, 8), progress=False,
              callback=lambda step: free.append(step.prediction.clone()))  # fmt: skip
    np.testing.assert_allclose(seen[0], threshold.threshold(free[0]), atol=PEER_RUN)


def test_dynamic_threshold_refuses():
    with pytest.raises(ValueError, match="ratio"):
        fd.DynamicThreshold(0)
    with pytest.raises(ValueError, match="max_value"):
        fd.DynamicThreshold(max_value=0.5)
    table = fd.samplers.deis(DIFFUSION, 4)
    with pytest.raises(ValueError, match="cannot be thresholded"):
        fd.sample(lambda x, t: x, table, shape=(1, 1, 2, 2), progress=False, threshold=fd.DynamicThreshold())
