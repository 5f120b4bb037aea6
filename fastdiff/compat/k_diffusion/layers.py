"""k-diffusion's `layers`: the preconditioned denoisers of Karras et al. around any network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.compat.k_diffusion._missing import missing
from fastdiff.compat.k_diffusion.sigmas import to_d
from fastdiff.compat.k_diffusion.utils import append_dims

__all__ = ["Denoiser", "DenoiserWithVariance", "SimpleLossDenoiser"]

Weighting = str | Callable[[Tensor], Tensor]
_OWN_LAYERS = "its own networks' layers are not here; take them from k_diffusion, and the samplers from here"
_ELSEWHERE = dict.fromkeys(
    ("AdaGN", "CheckpointLogger", "ConditionedModule", "ConditionedResidualBlock", "ConditionedSequential",
     "CrossAttention2d", "Downsample2d", "FourierFeatures", "ResidualBlock", "SelfAttention2d", "UNet",
     "UnconditionedModule", "Upsample2d", "dct", "freq_weight_1d", "freq_weight_nd"),
    _OWN_LAYERS,
)  # fmt: skip


class Denoiser(nn.Module):
    """D(x; sigma) = skip x + out F(in x, sigma), with unit variance of what the network F sees and predicts.

    Args:
        inner_model: F, called as inner_model(in x [B, C, ...], sigma [B], **kwargs).
        sigma_data: Standard deviation of the data.
        weighting: Of the loss over levels: "karras" (1), "soft-min-snr", "snr", or a function of sigma [B].
        scales: 1. k-diffusion's losses over several scales are not here.

    Raises:
        ValueError: another weighting, or scales.

    Source: Karras et al. (2022), arXiv:2206.00364, eq. 7 and table 1.
    """

    def __init__(
        self, inner_model: Any, sigma_data: float = 1.0, weighting: Weighting = "karras", scales: int = 1
    ) -> None:
        super().__init__()
        if not callable(weighting) and weighting not in ("karras", "snr", "soft-min-snr"):
            raise ValueError(f"weighting must be 'karras', 'soft-min-snr', 'snr' or a function, got {weighting!r}")
        if scales != 1:
            raise ValueError(
                f"scales must be 1, got {scales!r}: train with k_diffusion's own Denoiser, and sample here"
            )
        self.inner_model, self.sigma_data, self.scales = inner_model, sigma_data, scales
        self._weighting = weighting

    def weighting(self, sigma: Tensor) -> Tensor:
        """The loss's weight at levels [B]."""
        if callable(self._weighting):
            return self._weighting(sigma)
        total = sigma**2 + self.sigma_data**2
        if self._weighting == "soft-min-snr":
            return (sigma * self.sigma_data) ** 2 / total**2
        return self.sigma_data**2 / total if self._weighting == "snr" else torch.ones_like(sigma)

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of the state, of the output and of the input."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt()

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """[B] weighted squared error in what the network predicts, of images [B, C, ...] with noise at levels [B]."""
        output, target = self._output_and_target(input, noise, sigma, kwargs)
        error: Tensor = (output - target).square().flatten(1).mean(dim=1)
        return error * self.weighting(sigma)

    def forward(self, input: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """The denoised images for states [B, C, ...] at levels [B]."""
        skip, out, scale = self._factors(sigma, input)
        denoised: Tensor = skip * input + out * self.inner_model(scale * input, sigma, **kwargs)
        return denoised

    def _factors(self, sigma: Tensor, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skip, out, scale = (append_dims(factor, input.ndim) for factor in self.get_scalings(sigma))
        return skip, out, scale

    def _output_and_target(
        self, input: Tensor, noise: Tensor, sigma: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Any, Tensor]:
        skip, out, scale = self._factors(sigma, input)
        state = input + noise * append_dims(sigma, input.ndim)
        return self.inner_model(scale * state, sigma, **kwargs), (input - skip * state) / out


class DenoiserWithVariance(Denoiser):
    """A denoiser whose network, with return_variance=True, gives the log-variance of its error as well."""

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """[B] negative log-likelihood of the target, up to a constant."""
        (output, log_variance), target = self._output_and_target(
            input, noise, sigma, {"return_variance": True, **kwargs}
        )
        log_variance = append_dims(log_variance, output.ndim)
        error: Tensor = (output - target).square() / log_variance.exp() + log_variance
        return error.flatten(1).mean(dim=1) / 2


class SimpleLossDenoiser(Denoiser):
    """A denoiser with Ho's loss: the squared error of the predicted noise."""

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """[B]; arguments as `Denoiser.loss`."""
        state = input + noise * append_dims(sigma, input.ndim)
        return (to_d(state, sigma, self(state, sigma, **kwargs)) - noise).square().flatten(1).mean(dim=1)


def __getattr__(name: str) -> Any:
    return missing(name, __name__, _ELSEWHERE)
