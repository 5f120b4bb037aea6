"""The guided process against denoising-diffusion-pytorch itself, live: one seed, two implementations."""

import importlib
import inspect

import pytest
import torch

from fastdiff.compat.lucidrains import classifier_free_guidance as ours
from support import peer_lucidrains
from support.networks import shaken
from support.tolerances import FLOAT32_RUN, FLOAT32_SUM

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
CLASSES = torch.tensor([0, 3, 1, 2])
OBJECTIVES = ["pred_noise", "pred_x0", "pred_v"]


def live():
    package = peer_lucidrains.load()
    return importlib.import_module(f"{package.__name__}.classifier_free_guidance")


def pair(**options):
    theirs = live()
    torch.manual_seed(0)
    model = shaken(theirs.Unet(8, num_classes=4, dim_mults=(1, 2)).eval(), 0.05)
    options = {"image_size": 8, "timesteps": 12, **options}
    return theirs.GaussianDiffusion(model, **options), ours.GaussianDiffusion(model, **options)


def seeded(function, *args, **kwargs):
    torch.manual_seed(7)
    return function(*args, **kwargs)


def test_constructors_and_methods_have_their_parameters_and_defaults():
    theirs = live().GaussianDiffusion
    for method, function in inspect.getmembers(theirs, inspect.isfunction):
        if method in vars(theirs):
            expected, found = (
                inspect.signature(f).parameters for f in (function, getattr(ours.GaussianDiffusion, method))
            )
            assert list(found) == list(expected), method
            assert [p.default for p in found.values()] == [p.default for p in expected.values()], method
    with pytest.raises(ImportError, match=r"take denoising_diffusion_pytorch\.classifier_free_guidance\.Unet"):
        ours.Unet  # noqa: B018


@pytest.mark.parametrize("steps", [None, 5], ids=["ddpm", "ddim"])
@pytest.mark.parametrize("plus", [False, True], ids=["cfg", "cfg++"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_seed_gives_their_images(objective, plus, steps):
    theirs, mine = pair(objective=objective, use_cfg_plus_plus=plus, sampling_timesteps=steps)
    expected, found = (seeded(process.sample, CLASSES) for process in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)
    expected, found = (seeded(process.sample, CLASSES, cond_scale=2.0, rescaled_phi=0.0) for process in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_seed_gives_their_losses(objective):
    theirs, mine = pair(objective=objective, offset_noise_strength=0.1, min_snr_loss_weight=True)
    for options in ({}, {"times": torch.tensor([0, 1, 5, 11])}, {"cond_keep_mask": CLASSES > 1}):
        expected, found = (
            seeded(process, X, classes=CLASSES, loss_reduction="none", **options) for process in (theirs, mine)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=FLOAT32_SUM)
    assert torch.equal(*(seeded(process.random_cond_keep_mask, 64) for process in (theirs, mine)))


def test_interpolations_are_theirs_and_so_are_their_files():
    theirs, mine = pair()
    images = (2 * X[:2] - 1, 2 * X[2:] - 1)
    expected, found = (seeded(p.interpolate, *images, CLASSES[:2], t=6, lam=0.3) for p in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)
    mine.load_state_dict(theirs.state_dict())
    for name, value in theirs.named_buffers():
        torch.testing.assert_close(mine.get_buffer(name), value, rtol=1e-5, atol=1e-7)


def test_methods_of_a_subclass_are_used():
    """As the rows stand for them."""

    class Darker(ours.GaussianDiffusion):
        def predict_start_from_noise(self, x_t, t, noise):
            return 0.5 * super().predict_start_from_noise(x_t, t, noise)

    theirs, mine = pair()
    darker = Darker(mine.model, image_size=8, timesteps=12)
    for sampling in (12, 5):
        for process in (theirs, mine, darker):
            process.sampling_timesteps, process.is_ddim_sampling = sampling, sampling < 12
        plain, changed = seeded(mine.sample, CLASSES), seeded(darker.sample, CLASSES)
        assert float((plain - changed).abs().max()) > 0.01


@pytest.mark.parametrize("plus", [False, True])
def test_no_guidance_is_the_network_with_its_class(plus):
    """Theirs takes the one output for two."""
    theirs, mine = pair(use_cfg_plus_plus=plus)
    with pytest.raises(ValueError, match="unpack"):
        theirs.sample(CLASSES, cond_scale=1.0)
    times = torch.full((4,), 5)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = mine.model_predictions(x, times, CLASSES, cond_scale=1.0)
        expected = mine.model(x, times, CLASSES, cond_drop_prob=0.0)
        null = mine.model(x, times, CLASSES, cond_drop_prob=1.0)
    assert torch.equal(seen.pred_noise, null if plus else expected)
    assert torch.equal(seen.pred_x_start, mine.predict_start_from_noise(x, times, expected))
    assert bool(mine.sample(CLASSES, cond_scale=1.0).isfinite().all())


def test_networks_that_do_not_fit_are_refused():
    model = live().Unet(8, num_classes=4, learned_variance=True)
    with pytest.raises(ValueError, match="as many channels out as in"):
        ours.GaussianDiffusion(model, image_size=8)
