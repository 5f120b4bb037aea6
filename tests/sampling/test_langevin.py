"""Langevin dynamics with a step per sample: the right distribution, and no coupling through the batch."""

import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.sampling.langevin import langevin
from support.gaussian_networks import gaussian_network
from support.tolerances import FLOAT32_FEW, FLOAT32_SUM

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(100), "x0")
MODEL = gaussian_network(DIFFUSION, 0.25)


def test_langevin_reaches_the_level_s_own_distribution():
    t, snr = 40, 0.2
    a = DIFFUSION.schedule.alphas_cumprod[t]
    variance = a * 0.25 + 1 - a
    x = langevin(
        MODEL, DIFFUSION, timesteps=[t], shape=(300, 1, 8, 8), steps_per_level=150, snr=snr, denoise=False, clip=None
    )
    # A step d on variance V leaves V / (1 - d / (2 V)), here d = 2 snr^2 V; and its dependence on the state, 2 / D.
    assert float(x.var()) == pytest.approx(variance / (1 - snr**2) * (1 + 2 / 64), rel=0.02)
    assert abs(float(x.mean())) < 4 * math.sqrt(variance / x.numel())


def test_annealed_langevin_denoises_to_the_data():
    levels = np.linspace(99, 0, 12).round().tolist()
    x = langevin(MODEL, DIFFUSION, timesteps=levels, shape=(100, 1, 8, 8), steps_per_level=40, snr=0.2, clip=None)
    # Each level leaves a standard deviation 3.6 % too large (see above), and the cleanest ones barely move the state.
    assert float(x.std()) == pytest.approx(0.5, rel=0.08)


def test_langevin_of_a_sample_does_not_depend_on_its_batch():
    options = {"timesteps": [60, 20], "steps_per_level": 5, "seed": 3}
    whole = langevin(MODEL, DIFFUSION, shape=(4, 1, 4, 4), **options)
    one = langevin(MODEL, DIFFUSION, shape=(1, 1, 4, 4), sample_ids=[2], **options)
    torch.testing.assert_close(one, whole[2:3], rtol=FLOAT32_SUM, atol=FLOAT32_FEW)
    # A neighbour that is far out changes nothing.
    start = torch.zeros(2, 1, 4, 4)
    start[1] = 50
    both = langevin(MODEL, DIFFUSION, shape=(2, 1, 4, 4), x_init=start, **options)
    alone = langevin(MODEL, DIFFUSION, shape=(1, 1, 4, 4), x_init=start[:1], **options)
    torch.testing.assert_close(both[:1], alone, rtol=FLOAT32_SUM, atol=FLOAT32_FEW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": [5, 9]}, "fall"),
        ({"timesteps": [100]}, "t must be within"),
        ({"timesteps": [5], "steps_per_level": 0}, "steps_per_level"),
        ({"timesteps": [5], "snr": 1.0}, "snr"),
        ({"timesteps": [5], "x_init": torch.zeros(2, 1)}, "x_init"),
    ],
)
def test_langevin_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        langevin(MODEL, DIFFUSION, shape=(1, 1, 4, 4), **options)
