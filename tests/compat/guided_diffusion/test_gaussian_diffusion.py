"""The OpenAI drop-in against formulas derived again in float64, their signatures, and their scripts' steps."""

import math

import numpy as np
import pytest
import torch

from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd
from support.guided_networks import tiny_model
from support.guided_process import ORACLE, T, images, is_learned, learned, network, process
from support.tolerances import FLOAT32_RUN, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT, FLOAT64_RUN

MEANS = (gd.ModelMeanType.EPSILON, gd.ModelMeanType.START_X, gd.ModelMeanType.PREVIOUS_X)


@pytest.mark.parametrize("loss", gd.LossType)
@pytest.mark.parametrize("var", gd.ModelVarType)
@pytest.mark.parametrize("mean", MEANS)
def test_training_losses_follow_the_papers(mean, var, loss):
    model = learned if is_learned(var) else network
    diffusion = process(mean, var, loss)
    x, t, noise = images(batch=T), torch.arange(T), torch.randn(T, 2, 4, 4, dtype=torch.float64)
    terms = diffusion.training_losses(model, x, t, noise=noise)
    x_t = diffusion.q_sample(x, t, noise)
    raw = model(x_t, t).numpy()
    for i in range(T):
        x0, xt = x[i].numpy(), x_t[i].numpy()
        vb, _ = ORACLE.bound_term(x0, xt, i, raw[i], mean, var, False)
        if loss in (gd.LossType.KL, gd.LossType.RESCALED_KL):
            expected = vb * (T if loss == gd.LossType.RESCALED_KL else 1)
            assert set(terms) == {"loss"}
        else:
            target = {MEANS[0]: noise[i].numpy(), MEANS[1]: x0, MEANS[2]: ORACLE.posterior_mean(x0, xt, i)}[mean]
            expected = np.mean((target - raw[i][:2]) ** 2)
            np.testing.assert_allclose(terms["mse"][i], expected, rtol=FLOAT64_DIFFERENCE)
            if is_learned(var):
                weighted = vb * (T / 1000 if loss == gd.LossType.RESCALED_MSE else 1)
                np.testing.assert_allclose(terms["vb"][i], weighted, rtol=FLOAT64_RUN)
                expected += weighted
        np.testing.assert_allclose(terms["loss"][i], expected, rtol=FLOAT64_RUN)


def test_training_losses_of_a_learned_variance_detach_the_mean():
    out = torch.randn(2, 4, 4, 4, requires_grad=True)
    x, noise = images(batch=2).float(), torch.randn(2, 2, 4, 4)
    diffusion = process(var=gd.ModelVarType.LEARNED_RANGE, loss=gd.LossType.RESCALED_MSE)
    terms = diffusion.training_losses(lambda x, t: out, x, torch.tensor([0, 5]), noise=noise)
    (grad,) = torch.autograd.grad(terms["vb"].sum(), out, retain_graph=True)
    assert (grad[:, :2] == 0).all()
    assert (grad[:, 2:] != 0).any()
    (grad,) = torch.autograd.grad(terms["mse"].sum(), out)
    assert (grad[:, 2:] == 0).all()


@pytest.mark.parametrize("var", [gd.ModelVarType.FIXED_LARGE, gd.ModelVarType.LEARNED_RANGE])
def test_calc_bpd_loop_has_its_columns_from_the_last_timestep_down(var):
    model = learned if is_learned(var) else network
    diffusion = process(var=var)
    x = images()
    torch.manual_seed(3)
    out = diffusion.calc_bpd_loop(model, x)
    assert set(out) == {"total_bpd", "prior_bpd", "vb", "xstart_mse", "mse"}
    torch.manual_seed(3)
    for column, t in enumerate(reversed(range(T))):
        noise = torch.randn_like(x)
        x_t = diffusion.q_sample(x, torch.full((3,), t), noise)
        raw = model(x_t, torch.full((3,), t)).numpy()
        for i in range(3):
            x0, xt = x[i].numpy(), x_t[i].numpy()
            vb, pred = ORACLE.bound_term(x0, xt, t, raw[i], MEANS[0], var, True)
            np.testing.assert_allclose(out["vb"][i, column], vb, rtol=FLOAT64_RUN)
            np.testing.assert_allclose(out["xstart_mse"][i, column], np.mean((pred - x0) ** 2), rtol=FLOAT64_RUN)
            eps = ORACLE.eps(pred, xt, t)
            np.testing.assert_allclose(out["mse"][i, column], np.mean((eps - noise[i].numpy()) ** 2), rtol=FLOAT64_RUN)
    abar = ORACLE.abar[-1]
    prior = 0.5 * (-1 - np.log(1 - abar) + (1 - abar) + abar * x.square().flatten(1).mean(dim=1).numpy()) / math.log(2)
    np.testing.assert_allclose(out["prior_bpd"], prior, rtol=FLOAT64_RUN)
    np.testing.assert_allclose(out["total_bpd"], out["vb"].sum(dim=1).numpy() + prior, rtol=FLOAT64_PRODUCT)


@pytest.mark.parametrize("sampler", ["p_sample", "ddim_sample"])
@pytest.mark.parametrize("var", gd.ModelVarType)
@pytest.mark.parametrize("mean", MEANS[:2])
@pytest.mark.parametrize("clip", [True, False])
def test_sampling_steps_follow_the_papers_and_their_order_of_draws(sampler, mean, var, clip):
    model = learned if is_learned(var) else network
    diffusion = process(mean, var)
    x, t = torch.randn(T, 2, 4, 4, dtype=torch.float64), torch.arange(T)
    raw = model(x, t).numpy()
    options = {"eta": 0.7} if sampler == "ddim_sample" else {}
    results = []
    # The fused step, and the one by formulas that gradients and callbacks need.
    for extra in ({}, {"denoised_fn": lambda x0: x0}):
        torch.manual_seed(4)
        with torch.no_grad():
            results.append(getattr(diffusion, sampler)(model, x, t, clip_denoised=clip, **options, **extra))
    torch.manual_seed(4)
    noise = torch.randn_like(x).numpy()
    for i in range(T):
        xt = x[i].numpy()
        centre, log, pred = ORACLE.reverse(raw[i], xt, i, mean, var, clip)
        expected = centre + (i > 0) * np.exp(0.5 * log) * noise[i]
        if sampler == "ddim_sample":
            sigma = 0.7 * np.sqrt(ORACLE.small[i])
            along = np.sqrt(1 - ORACLE.prev[i] - sigma**2) * ORACLE.eps(pred, xt, i)
            expected = pred * np.sqrt(ORACLE.prev[i]) + along + (i > 0) * sigma * noise[i]
        for out in results:
            # Two quotients by alpha, which ends at 4e-3 here, on top of a run's.
            np.testing.assert_allclose(out["sample"][i], expected, rtol=1e-7, atol=FLOAT64_RUN)
            np.testing.assert_allclose(out["pred_xstart"][i], pred, rtol=FLOAT64_RUN, atol=FLOAT64_DIFFERENCE)


def test_ddim_reverse_sample_inverts_ddim_of_an_exact_network():
    # For N(0, s^2) data the score is exact, and one reverse step lands on the same line from the origin.
    diffusion = process()
    s2 = 0.25

    def exact(x, t):
        abar = torch.tensor(diffusion.alphas_cumprod)[t].view(-1, 1, 1, 1)
        return torch.sqrt(1 - abar) * x / (abar * s2 + 1 - abar)

    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    t = torch.tensor([5])
    out = diffusion.ddim_reverse_sample(exact, x, t, clip_denoised=False)["sample"]
    abar, following = diffusion.alphas_cumprod[5], diffusion.alphas_cumprod[6]
    eps = np.sqrt(1 - abar) * x / (abar * s2 + 1 - abar)
    expected = np.sqrt(following) * (x - np.sqrt(1 - abar) * eps) / np.sqrt(abar) + np.sqrt(1 - following) * eps
    torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match="eta must be 0"):
        diffusion.ddim_reverse_sample(exact, x, t, eta=0.5)


@pytest.mark.parametrize("sampler", ["p_sample_loop", "ddim_sample_loop"])
@pytest.mark.parametrize("predict_xstart", [False, True])
def test_a_seed_gives_its_images_under_a_guidance_that_changes_nothing(predict_xstart, sampler):
    """The network's output is channels_last, and with a prediction of the image the state becomes so."""
    model, diffusion = tiny_model(predict_xstart=predict_xstart, diffusion_steps=100, timestep_respacing="6")

    def draw(**options):
        torch.manual_seed(1)
        eta = {"eta": 1.0} if sampler == "ddim_sample_loop" else {}
        return getattr(diffusion, sampler)(model, (2, 3, 4, 6), **options, **eta)

    plain = draw()
    for options in ({"cond_fn": lambda x, t: torch.zeros_like(x), "model_kwargs": {}}, {"denoised_fn": lambda x: x}):
        torch.testing.assert_close(draw(**options), plain, rtol=0, atol=FLOAT32_RUN)


def test_arrays_that_are_put_in_their_place_hold():
    diffusion, other = process(), process(var=gd.ModelVarType.FIXED_LARGE)
    x, t = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.tensor([4, 7])
    with pytest.raises(ValueError, match="read-only"):
        diffusion.sqrt_recip_alphas_cumprod *= 2
    # The variance of a step is halved.
    diffusion.posterior_log_variance_clipped = diffusion.posterior_log_variance_clipped - math.log(4)
    other.betas = other.betas / 4
    for changed, var in ((diffusion, gd.ModelVarType.FIXED_SMALL), (other, gd.ModelVarType.FIXED_LARGE)):
        with torch.no_grad():
            mean = changed.p_mean_variance(network, x, t)["mean"]
            torch.manual_seed(0)
            found = changed.p_sample(network, x, t)["sample"]
            torch.manual_seed(0)
            before = process(var=var).p_sample(network, x, t)["sample"]
        np.testing.assert_allclose(found - mean, (before - mean) / 2, atol=FLOAT64_RUN)


def test_extract_into_tensor_gives_float32_of_a_shape():
    found = gd._extract_into_tensor(np.arange(5.0) / 3, torch.tensor([4, 1]), (2, 3, 2))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([4 / 3, 1 / 3])[:, None, None].expand(2, 3, 2))
