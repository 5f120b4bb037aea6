"""`ElucidatedDiffusion` against denoising-diffusion-pytorch itself, live: one seed, two implementations."""

import inspect
import random

import pytest
import torch

import fastdiff as fd
from fastdiff.compat import lucidrains
from support import peer_lucidrains
from support.networks import shaken
from support.tolerances import FLOAT32_RUN, FLOAT32_SUM

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def pair(model_options=None, **options):
    peer = peer_lucidrains.load()
    torch.manual_seed(0)
    model = shaken(peer.Unet(8, dim_mults=(1, 2), learned_sinusoidal_cond=True, **(model_options or {})).eval(), 0.05)
    options = {"image_size": 8, "num_sample_steps": 6, **options}
    return peer.ElucidatedDiffusion(model, **options), lucidrains.ElucidatedDiffusion(model, **options)


def seeded(function, *args, **kwargs):
    torch.manual_seed(7)
    random.seed(7)
    return function(*args, **kwargs)


def test_constructors_and_methods_have_their_parameters_and_defaults():
    theirs = peer_lucidrains.load().ElucidatedDiffusion
    for method, function in inspect.getmembers(theirs, inspect.isfunction):
        if method in vars(theirs):
            expected, found = (
                inspect.signature(f).parameters for f in (function, getattr(lucidrains.ElucidatedDiffusion, method))
            )
            assert list(found) == list(expected), method
            assert [p.default for p in found.values()] == [p.default for p in expected.values()], method


@pytest.mark.parametrize("self_condition", [False, True], ids=["plain", "self-conditioned"])
@pytest.mark.parametrize("options", [{}, {"S_churn": 0, "sigma_data": 0.8}, {"sigma_max": 20, "rho": 5}], ids=str)
def test_a_seed_gives_their_images_and_their_loss(options, self_condition):
    theirs, ours = pair({"self_condition": self_condition}, **options)
    for clamp in (True, False):
        expected, found = (seeded(process.sample, 2, clamp=clamp) for process in (theirs, ours))
        torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)
    expected, found = (seeded(process.sample_using_dpmpp, 2) for process in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)
    for reduction in ("mean", "none"):
        expected, found = (seeded(process, X, loss_reduction=reduction) for process in (theirs, ours))
        torch.testing.assert_close(found, expected, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    torch.testing.assert_close(ours.sample_schedule(), theirs.sample_schedule())


def test_the_process_goes_into_fastdiffs_own_samplers():
    _, ours = pair()
    table = fd.samplers.edm(ours.diffusion, 11)
    x = fd.sample(ours.net, table, shape=(1, 3, 8, 8), progress=False)
    assert bool(torch.isfinite(x).all())
    with pytest.raises(ValueError, match="learned_sinusoidal_cond"):
        lucidrains.ElucidatedDiffusion(lucidrains.Unet(8), image_size=8)
    with pytest.raises(ValueError, match="images must be"):
        ours(X[..., :4])
