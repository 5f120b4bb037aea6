"""One model seen in seven ways: the identities between them, at whole and fractional times."""

import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.sampling.views import Views
from support.gaussian_networks import Mixture, gaussian_network
from support.networks import small_unet
from support.tolerances import FLOAT64_RUN

X = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 1, 3, 3)))
SCHEDULE = fd.NoiseSchedule.cosine(100)


@pytest.mark.parametrize("t", [0, 37, 99, 12.25, torch.tensor([0, 5, 50, 99])])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity", "F"])
def test_views_are_the_closed_forms_of_gaussian_data(prediction, t):
    diffusion = fd.Diffusion(SCHEDULE, prediction)
    views = Views(gaussian_network(diffusion, 0.25), diffusion)
    at = np.broadcast_to(np.asarray(t, dtype=np.float64), (4,))
    log_abar = np.interp(at, np.arange(100), SCHEDULE.log_alphas_cumprod)
    alpha, sigma = (
        torch.from_numpy(c).reshape(4, 1, 1, 1) for c in (np.exp(log_abar / 2), np.sqrt(-np.expm1(log_abar)))
    )
    total = alpha**2 * 0.25 + sigma**2
    expected = {"eps": sigma * X / total, "x0": alpha * 0.25 * X / total, "score": -X / total}
    expected["v"] = alpha * expected["eps"] - sigma * expected["x0"]
    expected["velocity"] = expected["eps"] - expected["x0"]
    # Karras et al. (2022), table 1, of x / alpha at the level s = sigma / alpha, for data of this spread.
    s = sigma / alpha
    expected["F"] = (expected["x0"] - 0.25 / (s**2 + 0.25) * X / alpha) * (s**2 + 0.25).sqrt() / (0.5 * s)
    for name, value in expected.items():
        # At fractional times the network is given float32.
        torch.testing.assert_close(getattr(views, name)(X, t), value, rtol=1e-6, atol=FLOAT64_RUN)
    torch.testing.assert_close(alpha * views.x0(X, t) + sigma * views.eps(X, t), X)


def test_denoiser_is_that_of_the_exploding_form():
    diffusion = fd.Diffusion(SCHEDULE, "v")
    views = Views(gaussian_network(diffusion, 0.25), diffusion)
    for s in (0.05, 1.0, 20.0, torch.tensor([0.1, 0.2, 0.3, 0.4])):
        variance = torch.as_tensor(s, dtype=torch.float64).expand(4).reshape(4, 1, 1, 1) ** 2
        # The level's time is found by interpolation and given as float32.
        torch.testing.assert_close(views.denoise(X, s), X * 0.25 / (0.25 + variance), rtol=1e-5, atol=1e-7)
    rho = math.exp(-0.5 * SCHEDULE.log_snr[40])
    alpha = math.sqrt(SCHEDULE.alphas_cumprod[40])
    torch.testing.assert_close(views.denoise(X, rho), views.x0(alpha * X, 40))
    seen = []
    Views(lambda x, t: seen.append(t) or 0 * x, diffusion).denoise(X, rho)
    assert seen[0].dtype == torch.int64
    assert seen[0].tolist() == [40] * 4


def test_score_is_the_gradient_of_the_log_density():
    diffusion = fd.Diffusion(SCHEDULE, "x0")
    mixture = Mixture([[-0.7, 0.3], [0.5, -0.2]], 0.05)
    x = mixture.sample(6)
    for t in (0, 30, 80):
        a = SCHEDULE.alphas_cumprod[t]
        noised = Mixture((math.sqrt(a) * mixture.centres).tolist(), a * 0.05 + 1 - a)
        leaf = x.clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(noised.log_density(leaf).sum(), leaf)
        score = Views(mixture.network(diffusion), diffusion).score(x, t)
        torch.testing.assert_close(score, expected, rtol=FLOAT64_RUN, atol=FLOAT64_RUN)


def test_views_of_a_network_with_learned_variance_and_clip():
    diffusion = fd.Diffusion(SCHEDULE, "x0", "learned_range")
    views = Views(lambda x, t: torch.cat([5 * x, 0 * x], dim=1), diffusion, clip=1.0)
    assert float(views.x0(X, 3).abs().max()) == 1
    plain = Views(lambda x, t: 5 * x, diffusion)
    with pytest.raises(ValueError, match="variance is learned"):
        plain.x0(X, 3)


def test_views_run_a_unet_and_let_gradients_through():
    net = small_unet().train()
    diffusion = fd.Diffusion(SCHEDULE, "eps")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    score = Views(net, diffusion).score(x, 10)
    sigma = math.sqrt(1 - SCHEDULE.alphas_cumprod[10])
    expected = -net.eval()(x, torch.tensor([10, 10])) / sigma
    # A float32 network's output over sigma = 0.17.
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)
    (grad,) = torch.autograd.grad(score.sum(), x)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.eps(X, 100), "t must be within"),
        (lambda v: v.eps(X, -0.5), "t must be within"),
        (lambda v: v.eps(X, torch.tensor([1, 2])), "one number or"),
        (lambda v: v.eps(X, math.nan), "finite"),
        (lambda v: v.eps(X.to(torch.int64), 5), "floating point"),
        (lambda v: v.denoise(X, 1e-6), "sigma must be within"),
    ],
)
def test_views_refuse(call, message):
    diffusion = fd.Diffusion(SCHEDULE)
    with pytest.raises(ValueError, match=message):
        call(Views(gaussian_network(diffusion, 0.25), diffusion))
