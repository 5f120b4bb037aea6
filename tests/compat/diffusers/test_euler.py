"""The drop-ins in x / alpha: Euler's and Heun's steps by hand, and what theirs says of a wrong call."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours
from support.scheduler_runs import QUIET, toy
from support.tolerances import FLOAT32

pytestmark = QUIET


def begun(name, steps=5, **options):
    scheduler = getattr(ours, name)(timestep_spacing="trailing", **options)
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    return scheduler, x


def test_the_network_sees_the_state_at_variance_1():
    scheduler, x = begun("EulerDiscreteScheduler")
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].tolist(), strict=True):
        seen = scheduler.scale_model_input(x, t)
        torch.testing.assert_close(seen, x / np.sqrt(sigma**2 + 1), rtol=4 * FLOAT32, atol=0)
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample


def test_euler_steps_along_eps():
    """x' = x + (sigma' - sigma) eps, and the image that is predicted on the way is x - sigma eps."""
    scheduler, x = begun("EulerDiscreteScheduler")
    sigmas = scheduler.sigmas.double()
    for i, t in enumerate(scheduler.timesteps):
        eps = toy(scheduler.scale_model_input(x, t), t)
        expected = x.double() + (sigmas[i + 1] - sigmas[i]) * eps.double()
        image = x.double() - sigmas[i] * eps.double()
        out = scheduler.step(eps, t, x)
        scale = float(x.abs().max())
        torch.testing.assert_close(out.prev_sample.double(), expected, rtol=0, atol=8 * FLOAT32 * scale)
        torch.testing.assert_close(out.pred_original_sample.double(), image, rtol=0, atol=8 * FLOAT32 * scale)
        x = out.prev_sample


def test_heun_averages_the_slopes_of_both_ends():
    scheduler, x = begun("HeunDiscreteScheduler", steps=3)
    before, slopes = x.double(), []
    # The first step: each of the two evaluations has a call of its own.
    first, second = scheduler.timesteps[:2]
    sigma, after = float(scheduler.sigmas[0]), float(scheduler.sigmas[1])
    for t, level in ((first, sigma), (second, after)):
        eps = toy(scheduler.scale_model_input(x, t), t)
        slopes.append(eps.double())
        x = scheduler.step(eps, t, x).prev_sample
        expected = before + (after - sigma) * (slopes[0] if level == sigma else 0.5 * (slopes[0] + slopes[1]))
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=8 * FLOAT32 * float(before.abs().max()))


def test_an_index_for_a_timestep_is_refused_as_theirs_does():
    scheduler, x = begun("EulerDiscreteScheduler")
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    with pytest.raises(ValueError, match="integer indices"):
        scheduler.step(x, 1, x)
