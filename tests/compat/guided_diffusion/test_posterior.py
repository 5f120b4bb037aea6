"""The moments of q and p against the papers' formulas."""

import numpy as np
import pytest
import torch

from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd
from support.guided_process import ORACLE, T, images, is_learned, learned, network, process
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE, FLOAT64_PRODUCT

MEANS = (gd.ModelMeanType.EPSILON, gd.ModelMeanType.START_X, gd.ModelMeanType.PREVIOUS_X)


@pytest.mark.parametrize("var", gd.ModelVarType)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("clip", [True, False])
def test_p_mean_variance_follows_the_papers(mean, var, clip):
    model = learned if is_learned(var) else network
    x = torch.randn(T, 2, 4, 4, dtype=torch.float64)
    t = torch.arange(T)
    out = process(mean, var).p_mean_variance(model, x, t, clip_denoised=clip)
    assert set(out) == {"mean", "variance", "log_variance", "pred_xstart"}
    raw = model(x, t).numpy()
    for i in range(T):
        centre, log, pred = ORACLE.reverse(raw[i], x[i].numpy(), i, mean, var, clip)
        np.testing.assert_allclose(out["mean"][i], centre, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
        np.testing.assert_allclose(out["log_variance"][i], log, rtol=FLOAT64_DIFFERENCE)
        np.testing.assert_allclose(out["pred_xstart"][i], pred, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64_DIFFERENCE)
        if not (i == 0 and var == gd.ModelVarType.FIXED_SMALL):
            np.testing.assert_allclose(out["variance"][i], np.exp(log), rtol=FLOAT64_DIFFERENCE)
    if var == gd.ModelVarType.FIXED_SMALL:
        # Their table has the true variance there, and only its log that of t = 1.
        assert (out["variance"][0] == 0).all()


def test_q_functions_follow_the_papers():
    diffusion = process()
    x, noise, t = images(batch=T), torch.randn(T, 2, 4, 4, dtype=torch.float64), torch.arange(T)
    mean, variance, log = diffusion.q_mean_variance(x, t)
    x_t = diffusion.q_sample(x, t, noise)
    post, post_variance, post_log = diffusion.q_posterior_mean_variance(x, x_t, t)
    for i in range(T):
        abar = ORACLE.abar[i]
        np.testing.assert_allclose(mean[i], np.sqrt(abar) * x[i], rtol=FLOAT64_PRODUCT, atol=FLOAT64)
        np.testing.assert_allclose(variance[i], 1 - abar, rtol=FLOAT64_PRODUCT)
        np.testing.assert_allclose(log[i], np.log(1 - abar), rtol=FLOAT64_DIFFERENCE)
        np.testing.assert_allclose(x_t[i], np.sqrt(abar) * x[i] + np.sqrt(1 - abar) * noise[i], rtol=FLOAT64_DIFFERENCE)
        np.testing.assert_allclose(
            post[i], ORACLE.posterior_mean(x[i].numpy(), x_t[i].numpy(), i), rtol=FLOAT64_DIFFERENCE, atol=FLOAT64
        )
        np.testing.assert_allclose(post_variance[i], ORACLE.small[i], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64)
        np.testing.assert_allclose(post_log[i], ORACLE.log_small(i), rtol=FLOAT64_DIFFERENCE)


def test_cond_fn_shifts_the_mean_by_variance_times_gradient_and_ddim_by_the_score():
    diffusion = process(var=gd.ModelVarType.FIXED_LARGE)
    x, t = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.tensor([4, 4])

    def gradient(x, t, y=None):
        return torch.full_like(x, 0.3) * y.view(-1, 1, 1, 1)

    def model(x, t, y=None):
        return network(x, t)

    kwargs = {"y": torch.tensor([1.0, -2.0])}
    torch.manual_seed(0)
    out = diffusion.p_sample(model, x, t, cond_fn=gradient, model_kwargs=kwargs)["sample"]
    torch.manual_seed(0)
    plain = diffusion.p_sample(model, x, t, model_kwargs=kwargs)["sample"]
    shift = torch.tensor([0.3, -0.6]).view(2, 1, 1, 1) * ORACLE.beta[4]
    # As theirs, the mean and the gradient are float32 here.
    torch.testing.assert_close(out - plain, shift.expand_as(x).double(), rtol=1e-5, atol=1e-6)
    out = diffusion.ddim_sample(model, x, t, clip_denoised=False, cond_fn=gradient, model_kwargs=kwargs)["sample"]
    eps = network(x, t) - np.sqrt(1 - ORACLE.abar[4]) * torch.tensor([0.3, -0.6]).view(2, 1, 1, 1)
    pred = (x - np.sqrt(1 - ORACLE.abar[4]) * eps) / np.sqrt(ORACLE.abar[4])
    expected = np.sqrt(ORACLE.prev[4]) * pred + np.sqrt(1 - ORACLE.prev[4]) * eps
    torch.testing.assert_close(out, expected)
