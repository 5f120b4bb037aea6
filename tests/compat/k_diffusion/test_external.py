"""k-diffusion's wrappers, in both directions, against their formulas."""

import math

import pytest
import torch

import fastdiff as fd
from fastdiff.compat import k_diffusion as k
from support.tolerances import FLOAT64_RUN


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_denoisers_and_networks_are_inverse(prediction):
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(50), prediction)
    abar = torch.tensor(diffusion.schedule.alphas_cumprod)
    kinds = {"eps": k.DiscreteEpsDDPMDenoiser, "v": k.DiscreteVDDPMDenoiser}

    def network(x, t):
        return 0.3 * torch.sin(x) + 0.01 * t.reshape(-1, 1, 1, 1)

    denoiser = kinds[prediction](network, abar, quantize=False)
    back = k.NetworkFromDenoiser(denoiser, diffusion)
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 17, 30, 40])
    # The denoiser's levels are float32, as k-diffusion's.
    torch.testing.assert_close(back(x, t), network(x, t.double()), rtol=1e-3, atol=1e-3)
    sigma = denoiser.t_to_sigma(t.float())
    torch.testing.assert_close(denoiser.sigma_to_t(sigma), t.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(denoiser.sigma_to_t(sigma, quantize=True), t)
    assert denoiser.get_sigmas(5).shape == (6,)
    assert denoiser.get_sigmas()[0] == denoiser.sigma_max
    a, s = abar[t].sqrt().reshape(-1, 1, 1, 1), (1 - abar[t]).sqrt().reshape(-1, 1, 1, 1)
    m = network(x, t.double())
    x0 = (x - s * m) / a if prediction == "eps" else a * x - s * m
    # The denoiser's levels are float32, and near their ends a level says little about its time.
    torch.testing.assert_close(denoiser(x / a, (s / a).reshape(-1)), x0, rtol=1e-3, atol=1e-3)


def shaped(values):
    return values.reshape(-1, 1, 1, 1)


def wave(x, t, scale=0.3):
    return scale * torch.sin(x) + 0.01 * shaped(t).to(x.dtype)


def test_denoisers_lose_what_their_networks_lose():
    schedule = fd.NoiseSchedule.cosine(50)
    abar = torch.tensor(schedule.alphas_cumprod)
    x0, noise = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([3, 17, 40])
    sigma = ((1 - abar) / abar).sqrt()[t]
    a, s = shaped(abar[t].sqrt()), shaped((1 - abar[t]).sqrt())
    network = wave(a * x0 + s * noise, t)
    targets = {k.DiscreteEpsDDPMDenoiser: noise, k.DiscreteVDDPMDenoiser: a * noise - s * x0}
    for kind, target in targets.items():
        found = kind(wave, abar, quantize=True).loss(x0, noise, sigma)
        expected = (network - target).square().flatten(1).mean(dim=1)
        # The denoiser's levels are float32.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_v_denoiser_takes_the_angle_for_its_time():
    denoiser = k.VDenoiser(wave)
    sigma = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    angle = torch.atan(sigma)
    torch.testing.assert_close(denoiser.sigma_to_t(sigma), angle * 2 / math.pi)
    torch.testing.assert_close(denoiser.t_to_sigma(denoiser.sigma_to_t(sigma)), sigma)
    x0, noise = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    x = x0 + shaped(sigma) * noise
    alpha, part = shaped(angle.cos()), shaped(angle.sin())
    v = wave(alpha * x, denoiser.sigma_to_t(sigma))
    torch.testing.assert_close(denoiser(x, sigma), alpha * (alpha * x) - part * v)
    expected = (v - (alpha * noise - part * x0)).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(denoiser.loss(x0, noise, sigma), expected)


def test_openai_and_compvis_denoisers_call_their_models():
    from fastdiff.compat.guided_diffusion.script_util import create_gaussian_diffusion

    diffusion = create_gaussian_diffusion(steps=50, noise_schedule="cosine", learn_sigma=True)
    abar = torch.tensor(diffusion.alphas_cumprod)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 3.0], dtype=torch.float64)
    plain = k.DiscreteEpsDDPMDenoiser(wave, abar, quantize=False)(x, sigma)

    def doubled(x, t, y=None):
        return torch.cat([wave(x, t), torch.full_like(x, 7.0)], dim=1)

    class Latent:
        alphas_cumprod = abar

        def apply_model(self, x, t, cond=None):
            return wave(x, t) + (0 if cond is None else cond)

    assert torch.equal(k.OpenAIDenoiser(doubled, diffusion)(x, sigma, y=None), plain)
    assert torch.equal(k.OpenAIDenoiser(wave, diffusion, has_learned_sigmas=False)(x, sigma), plain)
    assert torch.equal(k.CompVisDenoiser(Latent())(x, sigma), plain)
    shifted = k.DiscreteVDDPMDenoiser(lambda x, t: wave(x, t) + 1, abar, False)(x, sigma)
    assert torch.equal(k.CompVisVDenoiser(Latent())(x, sigma, cond=1), shifted)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_any_network_becomes_a_denoiser_and_back(prediction):
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(50), prediction)
    denoiser = k.DenoiserFromNetwork(wave, diffusion)
    t = torch.tensor([3, 17, 30, 40])
    abar = torch.tensor(diffusion.schedule.alphas_cumprod)[t]
    a, s = shaped(abar.sqrt()), shaped((1 - abar).sqrt())
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    m = wave(x, t)
    x0 = {"eps": (x - s * m) / a, "x0": m, "v": a * x - s * m, "score": (x + s**2 * m) / a}[prediction]
    torch.testing.assert_close(denoiser(x / a, (s / a).reshape(-1)), x0, rtol=FLOAT64_RUN, atol=FLOAT64_RUN)
    back = k.NetworkFromDenoiser(denoiser, diffusion)
    # Divided by s at t = 3, and by it again on the way back.
    torch.testing.assert_close(back(x, t), m, rtol=1e-6, atol=1e-6)
    assert denoiser.sigma_min == pytest.approx(math.sqrt(1 / diffusion.schedule.alphas_cumprod[0] - 1))


def test_edm_sampler_takes_a_wrapped_network_with_labels():
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000))
    seen = []

    def network(x, t, y=None):
        seen.append((y.tolist(), float(t.max())))
        return 0.5 * torch.tanh(x)

    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = k.edm_sampler(k.DenoiserFromNetwork(network, diffusion), latents, torch.tensor([1, 2]), num_steps=4)
    assert images.isfinite().all()
    # Heun: two evaluations per step but for the last, which is one.
    assert len(seen) == 7
    assert all(labels == [1, 2] for labels, _ in seen)
    # From EDM's sigma_max of 80, below the schedule's 157.
    assert 900 < seen[0][1] < 999
