"""k-diffusion's configurations: losses and densities."""

import pytest
import torch

from fastdiff.compat import k_diffusion as k
from fastdiff.compat.k_diffusion.layers import DenoiserWithVariance, SimpleLossDenoiser


def test_config_makes_the_denoiser_that_it_names():
    def made(**model):
        return k.config.make_denoiser_wrapper({"model": {"sigma_data": 0.5} | model})(torch.nn.Identity())

    assert type(made()) is k.Denoiser
    assert made(loss_weighting="snr").weighting(torch.tensor(0.5)) == 0.5
    assert type(made(has_variance=True)) is DenoiserWithVariance
    assert type(made(loss_config="simple")) is SimpleLossDenoiser
    assert made().sigma_data == 0.5
    with pytest.raises(ValueError, match="loss_config must be"):
        made(loss_config="other")
    with pytest.raises(ValueError, match="no variance"):
        made(loss_config="simple", has_variance=True)


MODEL = {"sigma_data": 0.5, "sigma_min": 0.01, "sigma_max": 80.0, "input_size": [64, 64]}


@pytest.mark.parametrize(
    ("density", "middle", "low", "high"),
    [
        ({"type": "lognormal", "mean": -1.2, "std": 1.2}, 0.30, 0, 1e9),
        ({"type": "lognormal", "loc": 0.0, "scale": 1.0}, 1.0, 0, 1e9),
        ({"type": "loglogistic"}, 0.5, 0, 1e9),
        ({"type": "loglogistic", "min_value": 0.4, "max_value": 0.6}, 0.49, 0.4, 0.6),
        ({"type": "loguniform"}, (0.01 * 80) ** 0.5, 0.01, 80),
        ({"type": "v-diffusion", "min_value": 0.01, "max_value": 100}, 0.5, 0.01, 100),
        ({"type": "split-lognormal", "loc": 0.0, "scale_1": 1.0, "scale_2": 1.0}, 1.0, 0, 1e9),
        ({"type": "cosine-interpolated"}, None, 1e-3, 1e3),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_config_makes_the_density_that_it_names(density, middle, low, high):
    torch.manual_seed(0)
    levels = k.config.make_sample_density(MODEL | {"sigma_sample_density": density})([20001], device="cpu")
    assert levels.shape == (20001,)
    # The ends as float32 has them, and the median of 20,001 draws.
    assert low * (1 - 1e-4) <= float(levels.min())
    assert float(levels.max()) <= high * (1 + 1e-4)
    if middle is not None:
        # Of 20,001 draws.
        assert float(levels.median()) == pytest.approx(middle, rel=0.05)


def test_config_refuses_other_densities():
    with pytest.raises(ValueError, match="density"):
        k.config.make_sample_density(MODEL | {"sigma_sample_density": {"type": "normal"}})
