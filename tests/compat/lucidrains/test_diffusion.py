"""The lucidrains drop-in against denoising-diffusion-pytorch itself, live: one seed, two implementations."""

import inspect

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.compat import lucidrains
from support import peer_lucidrains
from support.networks import one_level, shaken
from support.tolerances import FLOAT32_DEEP, FLOAT32_FEW, FLOAT32_RUN, FLOAT32_SUM

OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
# Their schedules are in float32 from T on; the coefficients 1/alpha of the noisiest steps reach 1e2 to 1e3.
SAMPLES = 2e-4


def network(peer, **options):
    torch.manual_seed(0)
    return shaken(peer.Unet(8, dim_mults=(1, 2), **options).eval(), 0.05)


def pair(model_options=None, **options):
    """Their process and ours around one network of theirs."""
    peer = peer_lucidrains.load()
    model = network(peer, **(model_options or {}))
    options = {"image_size": 8, "timesteps": 12, **options}
    return peer.GaussianDiffusion(model, **options), lucidrains.GaussianDiffusion(model, **options)


def seeded(function, *args, **kwargs):
    torch.manual_seed(7)
    return function(*args, **kwargs)


@pytest.mark.parametrize("name", ["GaussianDiffusion", "Unet", "Trainer"])
def test_constructors_and_methods_have_their_parameters_and_defaults(name):
    peer = peer_lucidrains.load()
    theirs, ours = getattr(peer, name), getattr(lucidrains, name)
    # Their trainer's device is a property, ours an attribute.
    assert {key for key in vars(theirs) if not key.startswith("_")} <= {*dir(ours), "device"}
    for method, function in inspect.getmembers(theirs, inspect.isfunction):
        if method not in vars(theirs):
            continue
        expected, found = (inspect.signature(f).parameters for f in (function, getattr(ours, method)))
        assert list(found) == list(expected), method
        for key, parameter in expected.items():
            assert found[key].default == parameter.default, (method, key)
            assert found[key].kind == parameter.kind, (method, key)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("min_snr", [False, True])
def test_state_dict_has_their_buffers(schedule, objective, min_snr):
    options = {"objective": objective, "beta_schedule": schedule, "min_snr_loss_weight": min_snr, "timesteps": 200}
    theirs, ours = pair(**options)
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    ours.load_state_dict(expected)
    _, ours = pair(**options)
    for key, value in ours.state_dict().items():
        # Their sigmoid takes its ends in float32: 6e-8 of an abar that ends at 1e-5.
        np.testing.assert_allclose(
            value, expected[key], rtol=2e-2 if schedule == "sigmoid" else FLOAT32_DEEP, atol=FLOAT32_FEW
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_predictions_are_theirs(objective):
    theirs, ours = pair(objective=objective, min_snr_loss_weight=True)
    img = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0, 3, 7, 11])
    for options in ({"times": times}, {"times": times, "loss_reduction": "none"}, {}):
        expected, found = (seeded(process, img, **options) for process in (theirs, ours))
        torch.testing.assert_close(found, expected, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM)
    x = torch.randn(4, 3, 8, 8)
    for clip in (False, True):
        for rederive in (False, True):
            expected = theirs.model_predictions(x, times, None, clip, rederive)
            found = ours.model_predictions(x, times, None, clip, rederive)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=FLOAT32_RUN, atol=FLOAT32_DEEP)
    for one, other in zip(ours.p_mean_variance(x, times), theirs.p_mean_variance(x, times), strict=True):
        torch.testing.assert_close(one, other, rtol=FLOAT32_RUN, atol=FLOAT32_DEEP)
    torch.testing.assert_close(
        seeded(ours.q_sample, x, times), seeded(theirs.q_sample, x, times), rtol=FLOAT32_SUM, atol=FLOAT32_SUM
    )


@pytest.mark.parametrize("options", [{"immiscible": True}, {"offset_noise_strength": 0.1}, {"auto_normalize": False}])
def test_losses_with_the_rarer_options_are_theirs(options):
    theirs, ours = pair(**options)
    img = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected, found = (seeded(process, img, loss_reduction="none") for process in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sample_gives_their_images_for_their_seed(objective, steps, eta):
    if steps is None and eta:
        eta = 0.5
    theirs, ours = pair(objective=objective, sampling_timesteps=steps, ddim_sampling_eta=eta)
    expected = seeded(theirs.sample, batch_size=2, return_all_timesteps=True)
    found = seeded(ours.sample, batch_size=2, return_all_timesteps=True)
    assert found.shape == expected.shape == (2, (steps or 12) + 1, 3, 8, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAMPLES)
    torch.testing.assert_close(seeded(ours.sample, 2), found[:, -1], rtol=0, atol=0)


def test_sample_with_self_condition_gives_their_images():
    theirs, ours = pair({"self_condition": True}, sampling_timesteps=6)
    torch.testing.assert_close(seeded(ours.sample, 2), seeded(theirs.sample, 2), rtol=0, atol=SAMPLES)


def test_interpolate_gives_their_images():
    theirs, ours = pair()
    a, b = torch.randn(2, 2, 3, 8, 8).clamp(-1, 1)
    expected, found = (seeded(process.interpolate, a, b, t=8, lam=0.3) for process in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=SAMPLES)


def test_a_replaced_method_is_called():
    peer = peer_lucidrains.load()

    class Halved(lucidrains.GaussianDiffusion):
        def p_mean_variance(self, *args, **kwargs):
            mean, *rest = super().p_mean_variance(*args, **kwargs)
            return (mean * 0.5, *rest)

    model = network(peer)
    plain, halved = (kind(model, image_size=8, timesteps=5) for kind in (lucidrains.GaussianDiffusion, Halved))
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(
        halved.p_sample(x, 0)[0], 0.5 * plain.p_sample(x, 0)[0], rtol=FLOAT32_DEEP, atol=FLOAT32_SUM
    )


@pytest.mark.parametrize("steps", [None, 4])
def test_a_replaced_prediction_is_used_by_both_loops(steps):
    """Guidance is written so: a subclass, or a method set on the object, changes what the network says."""

    def halved(process):
        def predict(*args, **kwargs):
            noise, start = type(process).model_predictions(process, *args, **kwargs)
            return peer.denoising_diffusion_pytorch.ModelPrediction(0.5 * noise, 0.5 * start)

        process.model_predictions = predict
        return process

    peer = peer_lucidrains.load()
    theirs, ours = (halved(process) for process in pair(sampling_timesteps=steps, ddim_sampling_eta=0.5))
    expected, found = (seeded(process.sample, 2) for process in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=SAMPLES)
    assert not torch.allclose(found, seeded(pair(sampling_timesteps=steps)[1].sample, 2))


@pytest.mark.parametrize("steps", [None, 4])
def test_the_schedule_of_a_loaded_file_is_sampled(steps):
    theirs, ours = pair(sampling_timesteps=steps, beta_schedule="cosine")
    _, other = pair(sampling_timesteps=steps, beta_schedule="sigmoid")
    expected = seeded(theirs.sample, 2)
    other.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(seeded(other.sample, 2), expected, rtol=0, atol=SAMPLES)
    np.testing.assert_allclose(
        other.diffusion.schedule.alphas_cumprod, ours.diffusion.schedule.alphas_cumprod, atol=FLOAT32_FEW
    )
    ours.load_state_dict(theirs.state_dict())
    # Theirs rounds to float32 otherwise, which makes no other schedule.
    assert ours.diffusion.schedule == ours.schedule


def test_a_subclass_may_have_more_channels_out():
    class Learned(lucidrains.GaussianDiffusion):
        def model_predictions(self, x, t, *args, **kwargs):
            out = self.model(x, t).chunk(2, dim=1)[0]
            return lucidrains.ModelPrediction(out, self.predict_start_from_noise(x, t, out))

    unet = lucidrains.Unet(8, dim_mults=(1,), learned_variance=True)
    assert Learned(unet, image_size=8, timesteps=5).sample(1).shape == (1, 3, 8, 8)


def test_any_network_is_taken_and_fastdiffs_samplers_run():
    unet = fd.UNet(one_level(image_size=8, in_channels=3, out_channels=3)).eval()
    process = lucidrains.GaussianDiffusion(unet, image_size=8, timesteps=10, sampling_timesteps=3)
    assert process.sample(2).shape == (2, 3, 8, 8)
    assert process(torch.rand(2, 3, 8, 8)).ndim == 0
    images = fd.sample(
        process.model, fd.samplers.dpmpp_2m(process.diffusion, 4), shape=(1, 3, 8, 8), progress=False, runner="eager"
    )
    assert images.isfinite().all()


def test_constructor_refuses_what_theirs_refuses():
    unet = lucidrains.Unet(8, dim_mults=(1,))
    for options, said in (
        ({"objective": "pred_eps"}, "pred_noise"),
        ({"beta_schedule": "cubic"}, "unknown beta schedule"),
        ({"timesteps": 10, "sampling_timesteps": 11}, "sampling_timesteps"),
        ({"beta_schedule": "cosine", "schedule_fn_kwargs": {"tau": 1}}, "unknown key 'tau'"),
    ):
        with pytest.raises(ValueError, match=said):
            lucidrains.GaussianDiffusion(unet, image_size=8, **options)
    with pytest.raises(ValueError, match="as many channels"):
        lucidrains.GaussianDiffusion(lucidrains.Unet(8, dim_mults=(1,), learned_variance=True), image_size=8)
    with pytest.raises(ValueError, match="must be"):
        lucidrains.GaussianDiffusion(unet, image_size=8)(torch.rand(1, 3, 16, 16))
