"""k-diffusion's functions against their published updates, written out here in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.compat import k_diffusion as k
from support.k_diffusion_runs import SAME_RUN, SIGMAS, TO_SIGMA_MIN, WHITE, denoise, down_up, one, start


def churned(x, sigmas, i, churn, s_noise=1.0):
    """Noise is drawn at each step, whether or not it is used."""
    amount, low, high = churn if isinstance(churn, tuple) else (churn, 0.0, math.inf)
    gamma = min(amount / (len(sigmas) - 1), math.sqrt(2) - 1) if low <= sigmas[i] <= high else 0.0
    hat = sigmas[i] * (gamma + 1)
    noise = torch.randn_like(x) * s_noise
    return x + noise * (hat**2 - sigmas[i] ** 2) ** 0.5, hat


def euler(x, sigmas, churn=0.0):
    for i in range(len(sigmas) - 1):
        x, hat = churned(x, sigmas, i, churn, 1.01)
        x = x + (sigmas[i + 1] - hat) * (x - one(x, hat)) / hat
    return x


def heun(x, sigmas, churn=0.0):
    for i in range(len(sigmas) - 1):
        x, hat = churned(x, sigmas, i, churn, 1.01)
        d = (x - one(x, hat)) / hat
        there = x + d * (sigmas[i + 1] - hat)
        if sigmas[i + 1] > 0:
            d = (d + (there - one(there, sigmas[i + 1])) / sigmas[i + 1]) / 2
        x = x + d * (sigmas[i + 1] - hat)
    return x


def dpm_2(x, sigmas, churn=0.0):
    for i in range(len(sigmas) - 1):
        x, hat = churned(x, sigmas, i, churn, 1.01)
        d = (x - one(x, hat)) / hat
        if sigmas[i + 1] > 0:
            middle = (hat * sigmas[i + 1]) ** 0.5
            there = x + d * (middle - hat)
            d = (there - one(there, middle)) / middle
        x = x + d * (sigmas[i + 1] - hat)
    return x


def ancestral(kind):
    def loop(x, sigmas, eta=1.0):
        for i in range(len(sigmas) - 1):
            sigma, after = float(sigmas[i]), float(sigmas[i + 1])
            down, up = down_up(sigma, after, eta)
            first = one(x, sigma)
            d = (x - first) / sigma
            if down == 0 or kind == "euler":
                x = x + d * (down - sigma)
            elif kind == "dpm_2":
                middle = (sigma * down) ** 0.5
                there = x + d * (middle - sigma)
                x = x + (down - sigma) * (there - one(there, middle)) / middle
            else:
                t, h = -math.log(sigma), math.log(sigma / down)
                middle = math.exp(-(t + 0.5 * h))
                there = middle / sigma * x - math.expm1(-0.5 * h) * first
                x = down / sigma * x - math.expm1(-h) * one(there, middle)
            if after > 0:
                x = x + torch.randn_like(x) * 1.01 * up
        return x

    return loop


def lms(x, sigmas, order=4):
    ds = []
    s = sigmas.numpy()
    for i in range(len(s) - 1):
        ds.append((x - one(x, s[i])) / s[i])
        n = min(i + 1, order)
        for j in range(n):
            others = [s[i - m] for m in range(n) if m != j]
            roots = np.polynomial.Polynomial.fromroots(others) if others else np.polynomial.Polynomial([1.0])
            polynomial = roots / np.prod([s[i - j] - o for o in others])
            integral = polynomial.integ()
            x = x + (integral(s[i + 1]) - integral(s[i])) * ds[-1 - j]
    return x


def dpmpp_2m(x, sigmas):
    old = None
    for i in range(len(sigmas) - 1):
        now = one(x, sigmas[i])
        sigma, after = float(sigmas[i]), float(sigmas[i + 1])
        if after == 0:
            x = now
            continue
        h = math.log(sigma / after)
        d = now
        if old is not None:
            r = math.log(float(sigmas[i - 1]) / sigma) / h
            d = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * old
        x = after / sigma * x - math.expm1(-h) * d
        old = now
    return x


def dpmpp_2m_sde(solver):
    def loop(x, sigmas, eta=1.0):
        old, last = None, None
        for i in range(len(sigmas) - 1):
            now = one(x, sigmas[i])
            sigma, after = float(sigmas[i]), float(sigmas[i + 1])
            if after == 0:
                x = now
                continue
            h = math.log(sigma / after)
            f = h + eta * h
            x = after / sigma * math.exp(-eta * h) * x - math.expm1(-f) * now
            if old is not None:
                r = last / h
                weight = -math.expm1(-f) / -f + 1 if solver == "heun" else -0.5 * math.expm1(-f)
                x = x + weight / r * (now - old)
            if eta:
                x = x + torch.randn_like(x) * after * math.sqrt(-math.expm1(-2 * eta * h)) * 1.01
            old, last = now, h
        return x

    return loop


CASES = {
    "euler": (k.sample_euler, {}, euler, {}),
    "euler churn": (k.sample_euler, {"s_churn": 1.5, "s_noise": 1.01}, euler, {"churn": 1.5}),
    "euler churn between": (
        k.sample_euler, {"s_churn": 1.5, "s_tmin": 0.3, "s_tmax": 20.0, "s_noise": 1.01}, euler,
        {"churn": (1.5, 0.3, 20.0)},
    ),
    "heun": (k.sample_heun, {}, heun, {}),
    "heun churn": (k.sample_heun, {"s_churn": 30.0, "s_noise": 1.01}, heun, {"churn": 30.0}),
    "dpm_2": (k.sample_dpm_2, {}, dpm_2, {}),
    "dpm_2 churn": (k.sample_dpm_2, {"s_churn": 1.5, "s_noise": 1.01}, dpm_2, {"churn": 1.5}),
    "euler a": (k.sample_euler_ancestral, {"s_noise": 1.01}, ancestral("euler"), {}),
    "euler a half": (k.sample_euler_ancestral, {"s_noise": 1.01, "eta": 0.5}, ancestral("euler"), {"eta": 0.5}),
    "euler a 0": (k.sample_euler_ancestral, {"eta": 0.0}, ancestral("euler"), {"eta": 0.0}),
    "dpm_2 a": (k.sample_dpm_2_ancestral, {"s_noise": 1.01}, ancestral("dpm_2"), {}),
    "dpmpp_2s a": (k.sample_dpmpp_2s_ancestral, {"s_noise": 1.01}, ancestral("dpmpp_2s"), {}),
    "dpmpp_2s a half": (
        k.sample_dpmpp_2s_ancestral, {"s_noise": 1.01, "eta": 0.5}, ancestral("dpmpp_2s"), {"eta": 0.5},
    ),
    "lms": (k.sample_lms, {}, lms, {}),
    "lms 2": (k.sample_lms, {"order": 2}, lms, {"order": 2}),
    "dpmpp_2m": (k.sample_dpmpp_2m, {}, dpmpp_2m, {}),
    "dpmpp_2m_sde": (k.sample_dpmpp_2m_sde, {"s_noise": 1.01, **WHITE}, dpmpp_2m_sde("midpoint"), {}),
    "dpmpp_2m_sde heun": (
        k.sample_dpmpp_2m_sde, {"s_noise": 1.01, "solver_type": "heun", **WHITE}, dpmpp_2m_sde("heun"), {},
    ),
    "dpmpp_2m_sde half": (
        k.sample_dpmpp_2m_sde, {"s_noise": 1.01, "eta": 0.5, **WHITE}, dpmpp_2m_sde("midpoint"), {"eta": 0.5},
    ),
    "dpmpp_2m_sde heun 0": (
        k.sample_dpmpp_2m_sde, {"eta": 0.0, "solver_type": "heun", **WHITE}, dpmpp_2m_sde("heun"), {"eta": 0.0},
    ),
    "dpmpp_2m_sde 0": (k.sample_dpmpp_2m_sde, {"eta": 0.0, **WHITE}, dpmpp_2m, {}),
}  # fmt: skip


@pytest.mark.parametrize("sigmas", [SIGMAS, TO_SIGMA_MIN], ids=["zero", "sigma_min"])
@pytest.mark.parametrize("case", CASES)
def test_sampler_equals_its_published_update(case, sigmas):
    """With the same seed of torch, since noise is drawn at the same places."""
    function, options, textbook, own = CASES[case]
    torch.manual_seed(3)
    ours, following = function(denoise, start(), sigmas, **options), torch.rand(1)
    torch.manual_seed(3)
    expected = textbook(start(), sigmas, **own)
    torch.testing.assert_close(ours, expected, rtol=SAME_RUN, atol=SAME_RUN)
    # What a script draws next is the same as well.
    assert following == torch.rand(1)


@pytest.mark.parametrize("function", [k.sample_euler, k.sample_heun, k.sample_dpmpp_2m], ids=lambda f: f.__name__)
def test_sampler_reports_each_step(function):
    seen = []
    x = start()
    before = x.clone()
    function(lambda x, sigma, factor: factor * denoise(x, sigma), x, SIGMAS, {"factor": 1.0}, seen.append)
    assert torch.equal(x, before)
    assert [info["i"] for info in seen] == list(range(7))
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    for info in seen:
        assert info["sigma"] == info["sigma_hat"] == SIGMAS[info["i"]]
        torch.testing.assert_close(info["denoised"], one(info["x"], info["sigma"]))


def test_sampler_takes_a_noise_sampler():
    calls = []

    def noise(sigma, sigma_next):
        calls.append((float(sigma), float(sigma_next)))
        return torch.zeros(2, 3, 4, 4, dtype=torch.float64)

    k.sample_euler_ancestral(denoise, start(), SIGMAS, noise_sampler=noise)
    assert calls == [(float(a), float(b)) for a, b in pairwise(SIGMAS[:-1])]


def test_sampler_refuses():
    with pytest.raises(ValueError, match="must fall strictly, to 0"):
        k.sample_euler(denoise, start(), torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match=r"must be \[N \+ 1\], falling"):
        k.sample_euler(denoise, start(), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="solver_type must be 'heun' or 'midpoint', got 'rk4'"):
        k.sample_dpmpp_2m_sde(denoise, start(), SIGMAS, solver_type="rk4")


class Net:
    sigma_min, sigma_max = 0.01, 100.0

    def round_sigma(self, sigma):
        return sigma

    def __call__(self, x, sigma, class_labels=None):
        return denoise(x, sigma.reshape(-1).expand(len(x)))


def test_edm_sampler_is_algorithm_2():
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for churn in (0.0, 20.0):
        torch.manual_seed(1)
        ours = k.edm_sampler(Net(), latents, num_steps=6, S_churn=churn, S_noise=1.01)
        torch.manual_seed(1)
        sigmas = k.get_sigmas_karras(6, 0.01, 80.0).double()
        ramp = np.linspace(0, 1, 6)
        sigmas[:-1] = torch.from_numpy((80 ** (1 / 7) + ramp * (0.01 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
        x = latents.double() * sigmas[0]
        expected = heun(x, sigmas, churn * 6 / 6)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, expected, rtol=SAME_RUN, atol=SAME_RUN)


def test_denoiser_sampled_by_euler_is_ddim():
    """Through the denoiser and k-diffusion's loop, or straight from the network and our table."""
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000))
    table = fd.samplers.ddim(diffusion, 8, clip=None)
    abar = torch.tensor(diffusion.schedule.alphas_cumprod)
    denoiser = k.DiscreteEpsDDPMDenoiser(lambda x, t: 0.5 * torch.tanh(x), abar, quantize=True)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = fd.sample(lambda x, t: 0.5 * torch.tanh(x), table, shape=tuple(x.shape), x_init=x, dtype=torch.float64,
                         progress=False)  # fmt: skip
    sigmas = torch.tensor(np.asarray(table.sigmas) / np.asarray(table.alphas))
    ours = k.sample_euler(denoiser, x / table.alphas[0], sigmas)
    # The denoiser's levels are float32, which it finds the timesteps by.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
