"""The continuous-time processes against denoising-diffusion-pytorch itself, live: one seed, two implementations."""

import inspect

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.compat import lucidrains
from support import peer_lucidrains
from support.networks import shaken
from support.tolerances import FLOAT32_DEEP, FLOAT32_RUN, FLOAT32_SUM

NAMES = ("ContinuousTimeGaussianDiffusion", "VParamContinuousTimeGaussianDiffusion")
X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def pair(name, **options):
    """Their process and ours around one network of theirs, with the same weights of a schedule."""
    peer = peer_lucidrains.load()
    torch.manual_seed(0)
    model = shaken(peer.Unet(8, dim_mults=(1, 2), learned_sinusoidal_cond=True).eval(), 0.05)
    options = {"image_size": 8, "num_sample_steps": 9, **options}
    theirs, ours = getattr(peer, name)(model, **options), getattr(lucidrains, name)(model, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def seeded(function, *args, **kwargs):
    torch.manual_seed(7)
    return function(*args, **kwargs)


CASES = [(NAMES[0], {"noise_schedule": schedule}) for schedule in ("linear", "cosine", "learned")]
CASES += [(NAMES[0], {"min_snr_loss_weight": True}), (NAMES[0], {"clip_sample_denoised": False}), (NAMES[1], {})]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


@pytest.mark.parametrize("name", NAMES)
def test_constructors_and_methods_have_their_parameters_and_defaults(name):
    peer = peer_lucidrains.load()
    theirs, ours = getattr(peer, name), getattr(lucidrains, name)
    for method, function in inspect.getmembers(theirs, inspect.isfunction):
        if method in vars(theirs):
            expected, found = (inspect.signature(f).parameters for f in (function, getattr(ours, method)))
            assert list(found) == list(expected), method
            assert [p.default for p in found.values()] == [p.default for p in expected.values()], method


@cases
def test_a_seed_gives_their_images_and_their_loss(name, options):
    theirs, ours = pair(name, **options)
    if options.get("clip_sample_denoised", True):
        torch.testing.assert_close(seeded(ours.sample, 2), seeded(theirs.sample, 2), rtol=0, atol=FLOAT32_RUN)
    # Their learned schedule has abs() at 0 in its biases.
    torch.testing.assert_close(seeded(ours, X), seeded(theirs, X), rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    times = torch.tensor([0.1, 0.5, 0.9])
    expected, found = (seeded(process.q_sample, X, times) for process in (theirs, ours))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    step = [seeded(process.p_sample, X, torch.tensor(0.6), torch.tensor(0.5)) for process in (ours, theirs)]
    torch.testing.assert_close(*step, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_a_changed_step_is_taken():
    class Mine(lucidrains.ContinuousTimeGaussianDiffusion):
        def p_sample(self, x, time, time_next):
            return torch.zeros_like(x)

    _, ours = pair(NAMES[0])
    changed = Mine(ours.model, image_size=8, num_sample_steps=3)
    torch.testing.assert_close(changed.sample(1), torch.full((1, 3, 8, 8), 0.5))


@cases
def test_the_process_goes_into_fastdiffs_own_samplers(name, options):
    _, ours = pair(name, **options)
    diffusion = ours.diffusion
    # The network is given the log-SNR.
    np.testing.assert_allclose(diffusion.schedule.timesteps, diffusion.schedule.log_snr, rtol=FLOAT32_DEEP, atol=1e-6)
    seen = []
    table = fd.samplers.dpmpp(diffusion, 5)
    fd.sample(lambda x, t: seen.append(float(t[0])) or 0 * x, table, shape=(1, 3, 8, 8), progress=False)
    assert seen == sorted(seen)
    with pytest.raises(ValueError, match="log-SNR"):
        getattr(lucidrains, name)(lucidrains.Unet(8), image_size=8)
