"""The ODE likelihood against exact densities: Gaussians and mixtures of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.likelihood.flow import dequantised
from support.gaussian_networks import Mixture, gaussian_network
from support.networks import one_level
from support.tolerances import FLOAT64_DIFFERENCE

LN2 = math.log(2)


def gaussian_bits(x, variance):
    return (0.5 * math.log(2 * math.pi * variance) + 0.5 * x.flatten(1).square().mean(dim=1) / variance) / LN2


def gaussian_data(variance, shape=(5, 1, 4, 4)):
    return torch.from_numpy(np.random.default_rng(0).normal(0, math.sqrt(variance), shape))


@pytest.mark.parametrize("variance", [0.05, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("num_timesteps", [1000, 4000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ode_is_the_exact_density_of_gaussian_data(schedule, num_timesteps, variance):
    diffusion = fd.Diffusion(fd.NoiseSchedule.named(schedule, num_timesteps))
    x = gaussian_data(variance)
    result = likelihood.ode(gaussian_network(diffusion, variance), diffusion, x)
    # The flow is linear, x_T = gain x_0, and the latent's density is N(0, I).
    abar = float(diffusion.schedule.alphas_cumprod[-1])
    gain = math.sqrt((abar * variance + 1 - abar) / variance)
    expected = gaussian_bits(gain * x, 1.0) - math.log2(gain)
    # The solver's tolerance in float64 is 1e-6 a step.
    assert float((result.total - expected).abs().max()) < 1e-5
    assert float((result.total - expected).abs().max()) < float(result.error_estimate.max()) + 1e-6
    # The data's own density differs where some signal is left at T: by abar_T (1 - s^2) (1 - x_T^2) / 2 nats.
    assert float((result.total - gaussian_bits(x, variance)).abs().max()) < 1e-5 + 3 * abar
    # The solver's tolerance in float64 is 1e-6 a step.
    torch.testing.assert_close(result.latent, gain * x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_ode_takes_every_prediction(prediction):
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(100), prediction, "learned_range")
    base, x = gaussian_network(diffusion, 0.25), gaussian_data(0.25)

    def model(y, t):
        return torch.cat([base(y, t), torch.zeros_like(y)], dim=1)

    result = likelihood.ode(model, diffusion, x, divergence="exact")
    # The solver's tolerance in float64 is 1e-6 a step.
    assert float((result.total - gaussian_bits(x, 0.25)).abs().max()) < 1e-5
    assert torch.equal(result.probe_error, torch.zeros(5, dtype=torch.float64))


MIXTURES = {1: [[-0.7], [0.1], [0.8]], 2: [[-0.6, 0.0], [0.5, 0.5], [0.2, -0.7]]}


@pytest.mark.parametrize("dims", [1, 2])
def test_ode_is_the_exact_density_of_a_mixture(dims):
    mixture, diffusion = Mixture(MIXTURES[dims], 0.03), fd.Diffusion(fd.NoiseSchedule.cosine(1000), "x0")
    x = mixture.sample(40)
    result = likelihood.ode(mixture.network(diffusion), diffusion, x, divergence="exact")
    expected = -mixture.log_density(x) / LN2 / dims
    # Below t = 0 the score is held constant, which costs rho_0^4 / (4 v^2) = 5e-7 nats. The rest is step control.
    assert float((result.total - expected).abs().max()) < 1e-4
    assert abs(result.mean - float(expected.mean())) < 2e-5


def test_hutchinson_is_unbiased_and_knows_its_error():
    mixture, diffusion = Mixture(MIXTURES[2], 0.03), fd.Diffusion(fd.NoiseSchedule.cosine(100), "x0")
    x = mixture.sample(4)
    exact = likelihood.ode(mixture.network(diffusion), diffusion, x, divergence="exact", tolerance=1e-5).total
    for kind in ("rademacher", "gaussian"):
        some = likelihood.ode(mixture.network(diffusion), diffusion, x, divergence=kind, probes=100, tolerance=1e-5)
        assert float(((some.total - exact) / some.probe_error).abs().max()) < 4.5
        assert 0 < float(some.probe_error.max()) < 0.5
    one = likelihood.ode(mixture.network(diffusion), diffusion, x, tolerance=1e-3)
    assert torch.isnan(one.probe_error).all()


def test_ode_of_an_image_does_not_depend_on_its_batch():
    mixture, diffusion = Mixture(MIXTURES[2], 0.03), fd.Diffusion(fd.NoiseSchedule.cosine(100), "x0")
    x = mixture.sample(5)
    # One of them is far out and needs other steps.
    x[2] *= 40
    whole = likelihood.ode(mixture.network(diffusion), diffusion, x, seed=3, tolerance=1e-4)
    assert len(set(whole.steps.tolist())) > 1
    for size in (1, 2):
        split = likelihood.ode(mixture.network(diffusion), diffusion, x, seed=3, tolerance=1e-4, batch_size=size)
        torch.testing.assert_close(split.total, whole.total, rtol=FLOAT64_DIFFERENCE, atol=FLOAT64_DIFFERENCE)
        assert torch.equal(split.steps, whole.steps)
        assert split.evaluations == whole.evaluations
    some = likelihood.ode(mixture.network(diffusion), diffusion, x[3:], seed=3, tolerance=1e-4, sample_ids=[3, 4])
    torch.testing.assert_close(some.total, whole.total[3:], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64_DIFFERENCE)


def test_ode_runs_a_network_with_labels():
    torch.manual_seed(0)
    net = fd.UNet(one_level(image_size=8, num_classes=2)).train()
    nn.init.normal_(net.conv_out.weight, std=0.1)
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(50), "v")
    x = (torch.arange(3 * 64).reshape(3, 1, 8, 8) % 17).to(torch.uint8)
    options = {"levels": 17, "tolerance": 1e-3, "model_kwargs": {"y": torch.tensor([0, 1, 0])}}
    result = likelihood.ode(net, diffusion, x, **options)
    assert torch.isfinite(result.total).all()
    assert result.latent.shape == x.shape
    assert result.latent.dtype == torch.float32
    assert result.offset == pytest.approx(math.log2(8))
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    again = likelihood.ode(net, diffusion, x.float() / 8 - 1, batch_size=2, **options)
    # The solver's tolerance here is 1e-3.
    torch.testing.assert_close(again.total, result.total, rtol=1e-3, atol=1e-3)


def test_dequantised_values_fill_their_bins_evenly():
    x = (2.0 * torch.arange(256).float() - 255) / 255
    images = x.repeat(40, 1).reshape(40, 1, 16, 16)
    noisy = dequantised(images, 256, 0, torch.arange(40)).reshape(40, 256)
    u = (noisy - x.double()) * 255 / 2 + 0.5
    assert 0 < float(u.min()) < 0.01 < 0.99 < float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / u.numel()))
    # The variance of 10,240 uniform numbers has a standard error of 0.9 %; five of them.
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.05)


def test_ode_of_8_bit_images_counts_bits_of_values():
    """For uniform data of 256 values the density is 1/2 on an interval of 2 * 256/255, and 8 bits are right."""
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(1000))
    variance = 1 / 3
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2000, 1, 1, 1)).astype(np.uint8))
    result = likelihood.ode(gaussian_network(diffusion, variance), diffusion, x, batch_size=2000, tolerance=1e-4)
    # The Gaussian of that variance has the cross-entropy log2(sqrt(2 pi e / 3)) against uniform data.
    expected = math.log2(math.sqrt(2 * math.pi * math.e / 3)) + math.log2(127.5)
    assert result.mean == pytest.approx(expected, abs=4 * result.standard_error)
    assert result.standard_error < 0.02
    assert result.summary()["bits_per_dim"] == result.mean


D = fd.Diffusion(fd.NoiseSchedule.cosine(10), "x0")
BAD = {
    "probes": ({"probes": 0}, "probes"),
    "half a probe": ({"probes": 1.5}, "probes"),
    "no probes": ({"probes": None}, "probes"),
    "probes without number": ({"probes": math.nan}, "probes"),
    "divergence": ({"divergence": "radmacher"}, "rademacher"),
    "tolerance": ({"tolerance": 0.0}, "tolerance"),
    "off the grid": ({"levels": 17}, "lies off it"),
    "seed": ({"seed": -1}, "seed"),
}


@pytest.mark.parametrize("case", BAD)
def test_ode_refuses(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        likelihood.ode(gaussian_network(D, 0.25), D, torch.full((1, 1, 2, 2), 0.3), **options)


def test_ode_tolerance_follows_the_network_s_type():
    """A float32 network would be followed into its rounding by a tolerance that fits closed forms."""

    class Marked(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.one, self.network = nn.Parameter(torch.ones(1)), network

        def forward(self, x, t):
            return self.network(self.one * x, t)

    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(100), "v")
    network, x = gaussian_network(diffusion, 0.25), gaussian_data(0.25, (3, 2))
    for model, tolerance in ((network, 1e-6), (Marked(network).double(), 1e-6), (Marked(network), 1e-4)):
        found, expected = (
            likelihood.ode(model, diffusion, x, divergence="exact", **options)
            for options in ({}, {"tolerance": tolerance})
        )
        assert torch.equal(found.total, expected.total)
        assert torch.equal(found.steps, expected.steps)


def test_ode_refuses_what_it_cannot_differentiate_or_reach():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="differentiated"):
        likelihood.ode(lambda y, t: torch.zeros_like(y), D, x)
    with pytest.raises(ValueError, match="variance is learned"):
        likelihood.ode(lambda y, t: 0 * y, fd.Diffusion(D.schedule, "x0", "learned"), x)
    zero_snr = fd.Diffusion(fd.NoiseSchedule.from_betas([1.0]), "x0")
    with pytest.raises(ValueError, match="leaves none"):
        likelihood.ode(lambda y, t: 0 * y, zero_snr, x)
    with pytest.raises(RuntimeError, match="more than 2 steps"):
        likelihood.ode(gaussian_network(D, 0.25), D, x + 0.3, max_steps=2)
