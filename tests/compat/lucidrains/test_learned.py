"""`LearnedGaussianDiffusion` against denoising-diffusion-pytorch itself, live: one seed, two implementations."""

import inspect

import pytest
import torch

import fastdiff as fd
from fastdiff.compat import lucidrains
from support import peer_lucidrains
from support.networks import shaken
from support.tolerances import FLOAT32_RUN, FLOAT32_SUM

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def pair(**options):
    peer = peer_lucidrains.load()
    torch.manual_seed(0)
    model = shaken(peer.Unet(8, dim_mults=(1, 2), learned_variance=True).eval(), 0.05)
    options = {"image_size": 8, "timesteps": 12, **options}
    return peer.LearnedGaussianDiffusion(model, **options), lucidrains.LearnedGaussianDiffusion(model, **options)


def seeded(function, *args, **kwargs):
    torch.manual_seed(7)
    return function(*args, **kwargs)


def test_constructors_and_methods_have_their_parameters_and_defaults():
    theirs = peer_lucidrains.load().LearnedGaussianDiffusion
    for method, function in inspect.getmembers(theirs, inspect.isfunction):
        if method in vars(theirs):
            ours = getattr(lucidrains.LearnedGaussianDiffusion, method)
            expected, found = (inspect.signature(f).parameters for f in (function, ours))
            assert list(found) == list(expected), method
            assert [p.default for p in found.values()] == [p.default for p in expected.values()], method


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_a_seed_gives_their_images_and_their_losses(schedule):
    # Their linear schedule has betas above 1 for so few steps.
    theirs, ours = pair(beta_schedule=schedule, timesteps=30 if schedule == "linear" else 12)
    expected, found = (seeded(process.sample, 2) for process in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)
    times = torch.tensor([0, 1, 5, 11])
    for options in ({}, {"clip_denoised": True}):
        expected, found = (
            seeded(process, X, times=times, loss_reduction="none", **options) for process in (theirs, ours)
        )
        # Of a variance of 1e-20 at t = 0, whose bins have their floor.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=FLOAT32_SUM)


def test_ddim_and_fastdiffs_own_samplers_take_the_network():
    _, ours = pair(sampling_timesteps=4, objective="pred_noise")
    assert bool(torch.isfinite(seeded(ours.sample, 2)).all())
    assert ours.diffusion.variance == "learned_range"
    x = fd.sample(ours.model, fd.samplers.ddpm(ours.diffusion, 4), shape=(1, 3, 8, 8), progress=False)
    assert bool(torch.isfinite(x).all())
    with pytest.raises(ValueError, match="twice as many channels"):
        lucidrains.LearnedGaussianDiffusion(lucidrains.Unet(8), image_size=8)
