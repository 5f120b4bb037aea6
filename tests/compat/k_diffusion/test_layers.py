"""k-diffusion's preconditioned denoisers: table 1 of Karras et al. and the losses written out."""

import pickle

import pytest
import torch

from fastdiff.compat import k_diffusion as k
from fastdiff.compat.k_diffusion.layers import DenoiserWithVariance, SimpleLossDenoiser

SIGMA = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)
GENERATOR = torch.Generator().manual_seed(0)
IMAGE, NOISE = (torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
S = SIGMA.view(-1, 1, 1, 1)
DATA = 0.6


def network(x, sigma, shift=0.0):
    return torch.sin(x) + sigma.view(-1, 1, 1, 1) / 40 + shift


def denoised(x):
    total = S**2 + DATA**2
    return DATA**2 / total * x + S * DATA / total.sqrt() * network(x / total.sqrt(), SIGMA, 0.2)


def test_denoiser_is_preconditioned():
    model = k.Denoiser(network, sigma_data=DATA)
    torch.testing.assert_close(model(IMAGE, SIGMA, shift=0.2), denoised(IMAGE))
    exact = k.Denoiser(lambda x, sigma: torch.zeros_like(x), sigma_data=DATA)
    # A network of zeros gives the mean of Gaussian data.
    torch.testing.assert_close(exact(IMAGE, SIGMA), DATA**2 / (DATA**2 + S**2) * IMAGE)


@pytest.mark.parametrize(
    ("weighting", "weight"),
    [
        ("karras", torch.ones_like(SIGMA)),
        ("snr", DATA**2 / (SIGMA**2 + DATA**2)),
        ("soft-min-snr", (SIGMA * DATA) ** 2 / (SIGMA**2 + DATA**2) ** 2),
        (lambda sigma: sigma**2, SIGMA**2),
    ],
    ids=["karras", "snr", "soft-min-snr", "own"],
)
def test_denoiser_loss_is_the_error_of_the_image_by_its_weight(weighting, weight):
    model = k.Denoiser(network, sigma_data=DATA, weighting=weighting)
    error = denoised(IMAGE + S * NOISE) - IMAGE
    out = S * DATA / (S**2 + DATA**2).sqrt()
    expected = (error / out).square().flatten(1).mean(1) * weight
    torch.testing.assert_close(model.loss(IMAGE, NOISE, SIGMA, shift=0.2), expected)


def test_simple_loss_is_the_error_of_the_noise():
    error = denoised(IMAGE + S * NOISE) - IMAGE
    loss = SimpleLossDenoiser(network, sigma_data=DATA).loss(IMAGE, NOISE, SIGMA, shift=0.2)
    torch.testing.assert_close(loss, (error / S).square().flatten(1).mean(1))


def test_loss_with_variance_is_a_likelihood():
    log_variance = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)

    def both(x, sigma, return_variance=False, shift=0.0):
        return (network(x, sigma, shift), log_variance) if return_variance else network(x, sigma, shift)

    plain = k.Denoiser(network, sigma_data=DATA).loss(IMAGE, NOISE, SIGMA, shift=0.2)
    loss = DenoiserWithVariance(both, sigma_data=DATA).loss(IMAGE, NOISE, SIGMA, shift=0.2)
    torch.testing.assert_close(loss, (plain / log_variance.exp() + log_variance) / 2)


def test_denoiser_refuses_what_is_not_here():
    with pytest.raises(ValueError, match="weighting must be"):
        k.Denoiser(network, weighting="soft-min")
    with pytest.raises(ValueError, match="scales must be 1"):
        k.Denoiser(network, scales=2)
    with pytest.raises(ImportError, match="take them from k_diffusion"):
        from fastdiff.compat.k_diffusion.layers import AdaGN  # noqa: F401
    assert pickle.loads(pickle.dumps(k.Denoiser(torch.nn.Identity(), 0.5))).sigma_data == 0.5
