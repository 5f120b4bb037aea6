"""k-diffusion's samplers on SDEs, DPM-Solver-fast and -adaptive, and the Brownian path, written out in float64."""

import inspect
import math

import pytest
import torch

from fastdiff.compat import k_diffusion as k
from support.k_diffusion_runs import SAME_RUN, SIGMAS, TO_SIGMA_MIN, WHITE, denoise, down_up, one, start


def dpmpp_3m_sde(x, sigmas, eta):
    past, steps = [], []
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        now = one(x, sigma)
        if after == 0:
            return now
        h = math.log(sigma / after)
        z = (1 + eta) * h
        x = math.exp(-z) * x + (1 - math.exp(-z)) * now
        p2 = 1 - (1 - math.exp(-z)) / z
        if len(past) == 1:
            x = x + p2 * (now - past[-1]) * h / steps[-1]
        elif past:
            a, b = steps[-1] / h, steps[-2] / h
            newer, older = (now - past[-1]) / a, (past[-1] - past[-2]) / b
            slope = newer + (newer - older) * a / (a + b)
            x = x + p2 * slope - (p2 / z - 0.5) * (newer - older) / (a + b)
        if eta:
            x = x + torch.randn_like(x) * after * math.sqrt(1 - math.exp(-2 * eta * h)) * 1.01
        past.append(now)
        steps.append(h)
    return x


def dpmpp_sde(x, sigmas, eta, r=0.5):
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        first = one(x, sigma)
        if after == 0:
            return first
        middle = math.exp((1 - r) * math.log(sigma) + r * math.log(after))
        down, up = down_up(sigma, middle, eta)
        state = down / sigma * x + (1 - down / sigma) * first + torch.randn_like(x) * 1.01 * up
        second = one(state, middle)
        down, up = down_up(sigma, after, eta)
        mixed = first + (second - first) / (2 * r)
        x = down / sigma * x + (1 - down / sigma) * mixed + torch.randn_like(x) * 1.01 * up
    return x


@pytest.mark.parametrize("sigmas", [SIGMAS, TO_SIGMA_MIN], ids=["zero", "sigma_min"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_sde r", "dpmpp_3m_sde"])
def test_sde_sampler_equals_its_published_update(name, eta, sigmas):
    function, textbook = {
        "dpmpp_sde": (k.sample_dpmpp_sde, dpmpp_sde),
        "dpmpp_sde r": (k.sample_dpmpp_sde, dpmpp_sde),
        "dpmpp_3m_sde": (k.sample_dpmpp_3m_sde, dpmpp_3m_sde),
    }[name]
    options = {"r": 0.3} if name.endswith(" r") else {}
    torch.manual_seed(3)
    ours = function(denoise, start(), sigmas, eta=eta, s_noise=1.01, **WHITE, **options)
    following = torch.rand(1)
    torch.manual_seed(3)
    expected = textbook(start(), sigmas, eta, **options)
    torch.testing.assert_close(ours, expected, rtol=SAME_RUN, atol=SAME_RUN)
    assert following == torch.rand(1)


def test_sde_samplers_refine_one_path_and_repeat_by_seed():
    """For an exact Gaussian denoiser, more steps of one path come ever nearer to each other."""
    x = 10 * torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def exact(x, sigma):
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    def run(steps, function):
        torch.manual_seed(7)
        return function(exact, x, k.get_sigmas_exponential(steps, 0.1, 10.0).double()[:-1])

    for function in (k.sample_dpmpp_2m_sde, k.sample_dpmpp_3m_sde, k.sample_dpmpp_sde):
        rough, mid, fine = (run(steps, function) for steps in (9, 33, 129))
        assert torch.equal(mid, run(33, function))
        assert (mid - fine).std() < 0.5 * (rough - fine).std()
        assert (mid - fine).std() < 0.2 * fine.std()


NAMES = {
    "sample_dpmpp_sde": "model x sigmas extra_args callback disable eta s_noise noise_sampler r",
    "sample_dpmpp_2m_sde": "model x sigmas extra_args callback disable eta s_noise noise_sampler solver_type",
    "sample_dpmpp_3m_sde": "model x sigmas extra_args callback disable eta s_noise noise_sampler",
    "sample_dpm_fast": "model x sigma_min sigma_max n extra_args callback disable eta s_noise noise_sampler",
    "sample_dpm_adaptive": "model x sigma_min sigma_max extra_args callback disable order rtol atol h_init pcoeff "
    "icoeff dcoeff accept_safety eta s_noise noise_sampler return_info",
    "sample_euler": "model x sigmas extra_args callback disable s_churn s_tmin s_tmax s_noise",
    "sample_euler_ancestral": "model x sigmas extra_args callback disable eta s_noise noise_sampler",
    "sample_lms": "model x sigmas extra_args callback disable order",
    "get_sigmas_karras": "n sigma_min sigma_max rho device",
    "get_ancestral_step": "sigma_from sigma_to eta",
    "to_d": "x sigma denoised",
    "BrownianTreeNoiseSampler": "x sigma_min sigma_max seed transform",
}


@pytest.mark.parametrize("name", NAMES)
def test_signature_has_their_names_in_their_order(name):
    assert list(inspect.signature(getattr(k.sampling, name)).parameters) == NAMES[name].split()
