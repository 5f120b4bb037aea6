"""k-diffusion's `external`: networks of DDPM, OpenAI, CompVis and v-diffusion as D(x; sigma), and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.compat.k_diffusion._steps import Denoiser
from fastdiff.compat.k_diffusion.sigmas import append_zero
from fastdiff.compat.k_diffusion.utils import append_dims
from fastdiff.process.diffusion import Diffusion
from fastdiff.sampling.views import Views
from fastdiff.tensors import per_sample

__all__ = [
    "CompVisDenoiser",
    "CompVisVDenoiser",
    "DenoiserFromNetwork",
    "DiscreteEpsDDPMDenoiser",
    "DiscreteSchedule",
    "DiscreteVDDPMDenoiser",
    "NetworkFromDenoiser",
    "OpenAIDenoiser",
    "VDenoiser",
]


class _Preconditioned(nn.Module):
    """D(x) = skip x + out F(scale x, t) for a network F of eps or v."""

    inner_model: Any
    sigma_data = 1.0
    _predicts_v = True
    sigma_to_t: Callable[..., Tensor]

    def _network(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner_model(*args, **kwargs)  # type: ignore[no-any-return]

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """Mean squared error in what the network predicts, of images [B, C, ...] with noise at levels [B]: [B]."""
        skip, out, scale = self._factors(sigma, input)
        state = input + noise * append_dims(sigma, input.ndim)
        target = (input - skip * state) / out if self._predicts_v else noise
        prediction = self._network(state * scale, self.sigma_to_t(sigma), **kwargs)[:, : input.shape[1]]
        return (prediction - target).square().flatten(1).mean(dim=1)

    def forward(self, input: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """The denoised images for states [B, C, ...] at levels [B]."""
        skip, out, scale = self._factors(sigma, input)
        prediction = self._network(input * scale, self.sigma_to_t(sigma), **kwargs)
        return skip * input + out * prediction[:, : input.shape[1]]

    def _factors(self, sigma: Tensor, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """skip, out and scale, shaped against the input."""
        factors = _v_scalings(sigma) if self._predicts_v else (torch.ones_like(sigma), -sigma, _scale(sigma))
        skip, out, scale = (append_dims(factor, input.ndim) for factor in factors)
        return skip, out, scale


def _scale(sigma: Tensor) -> Tensor:
    """What makes the variance of a state 1."""
    return 1 / (sigma**2 + 1).sqrt()


def _v_scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = _scale(sigma)
    return scale**2, -sigma * scale, scale


class DiscreteSchedule(nn.Module):
    """Levels of noise by number, and in between by log sigma.

    Args:
        sigmas: [T], rising.
        quantize: Move levels to the nearest timestep for the network.
    """

    sigmas: Tensor
    log_sigmas: Tensor

    def __init__(self, sigmas: Tensor, quantize: bool) -> None:
        super().__init__()
        self.register_buffer("sigmas", sigmas.float())
        self.register_buffer("log_sigmas", sigmas.log().float())
        self.quantize = quantize

    @property
    def sigma_min(self) -> Tensor:
        """The level of t = 0."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        """The level of t = T - 1."""
        return self.sigmas[-1]

    def get_sigmas(self, n: int | None = None) -> Tensor:
        """[n + 1] levels uniform in time, and 0; every one for None."""
        if n is None:
            return append_zero(self.sigmas.flip(0))
        return append_zero(self.t_to_sigma(torch.linspace(len(self.sigmas) - 1, 0, n, device=self.sigmas.device)))

    def sigma_to_t(self, sigma: Tensor, quantize: bool | None = None) -> Tensor:
        """The time of a level: between timesteps by log sigma, or the nearest one."""
        log_sigma = sigma.log()
        if self.quantize if quantize is None else quantize:
            return (log_sigma - self.log_sigmas[:, None]).abs().argmin(dim=0).view(sigma.shape)
        below = torch.searchsorted(self.log_sigmas, log_sigma.reshape(-1), right=True) - 1
        below = below.clamp(0, len(self.log_sigmas) - 2)
        low, high = self.log_sigmas[below], self.log_sigmas[below + 1]
        share = ((log_sigma.reshape(-1) - low) / (high - low)).clamp(0, 1)
        return (below + share).view(sigma.shape)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """The level of a time, whole or not."""
        below = t.floor().long().clamp(max=len(self.log_sigmas) - 1)
        share = t - below
        above = t.ceil().long()
        return ((1 - share) * self.log_sigmas[below] + share * self.log_sigmas[above]).exp()


class _DiscreteDenoiser(DiscreteSchedule, _Preconditioned):
    def __init__(self, model: Any, alphas_cumprod: Tensor, quantize: bool) -> None:
        abar = alphas_cumprod.double()
        super().__init__(((1 - abar) / abar).sqrt(), quantize)
        self.inner_model = model


class DiscreteEpsDDPMDenoiser(_DiscreteDenoiser):
    """D(x; sigma) of a network that predicts eps, model(x, t).

    Args:
        model: The network, of states alpha x_0 + sigma eps and times in [0, T - 1].
        alphas_cumprod: [T].
        quantize: Move levels to the nearest timestep for the network.
    """

    _predicts_v = False

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the output and of the input."""
        return -sigma, 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def get_eps(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the network predicts; for subclasses."""
        return super()._network(*args, **kwargs)

    def _network(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.get_eps(*args, **kwargs)


class OpenAIDenoiser(DiscreteEpsDDPMDenoiser):
    """D(x; sigma) of a network of OpenAI's and its process.

    Args:
        model: As `create_model` gives it.
        diffusion: A `GaussianDiffusion`, not respaced.
        quantize: Move levels to the nearest timestep for the network.
        has_learned_sigmas: Whether the second half of the output is the variance.
        device: Of the levels.
    """

    def __init__(
        self,
        model: Any,
        diffusion: Any,
        quantize: bool = False,
        has_learned_sigmas: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(model, torch.tensor(diffusion.alphas_cumprod, device=device), quantize)
        self.has_learned_sigmas = has_learned_sigmas

    def get_eps(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first half of the output where the second is the variance."""
        output = super().get_eps(*args, **kwargs)
        return output.chunk(2, dim=1)[0] if self.has_learned_sigmas else output


class CompVisDenoiser(DiscreteEpsDDPMDenoiser):
    """D(x; sigma) of a CompVis model that predicts eps: one with `alphas_cumprod` and `apply_model(x, t, ...)`."""

    def __init__(self, model: Any, quantize: bool = False, device: torch.device | str = "cpu") -> None:
        super().__init__(model, model.alphas_cumprod, quantize)

    def get_eps(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the model predicts."""
        return self.inner_model.apply_model(*args, **kwargs)  # type: ignore[no-any-return]


class DiscreteVDDPMDenoiser(_DiscreteDenoiser):
    """D(x; sigma) of a network that predicts v; arguments as `DiscreteEpsDDPMDenoiser`."""

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of the state, of the output and of the input."""
        return _v_scalings(sigma)

    def get_v(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the network predicts; for subclasses."""
        return super()._network(*args, **kwargs)

    def _network(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.get_v(*args, **kwargs)


class CompVisVDenoiser(DiscreteVDDPMDenoiser):
    """D(x; sigma) of a CompVis model that predicts v."""

    def __init__(self, model: Any, quantize: bool = False, device: torch.device | str = "cpu") -> None:
        super().__init__(model, model.alphas_cumprod, quantize)

    def get_v(self, x: Tensor, t: Tensor, cond: Any, **kwargs: Any) -> Tensor:
        """What the model predicts; it is given x, t and cond alone, as there."""
        v: Tensor = self.inner_model.apply_model(x, t, cond)
        return v


class VDenoiser(_Preconditioned):
    """D(x; sigma) of a v-diffusion-pytorch network, whose time is the angle atan(sigma) in units of pi / 2."""

    def __init__(self, inner_model: Any) -> None:
        super().__init__()
        self.inner_model = inner_model

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of the state, of the output and of the input."""
        return _v_scalings(sigma)

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The time of a level."""
        return sigma.atan() / math.pi * 2

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """The level of a time in [0, 1)."""
        return (t * math.pi / 2).tan()


class DenoiserFromNetwork(nn.Module):
    """D(x; sigma) of a network model(x, t) of any process, for the samplers here and for `edm_sampler`.

    Args:
        model: (x [B, C, ...], t [B], **kwargs) -> [B, C or 2C, ...].
        diffusion: What it was trained on: eps, x_0, v or the score.
    """

    def __init__(self, model: Callable[..., Tensor], diffusion: Diffusion) -> None:
        super().__init__()
        self.inner_model, self.diffusion = model, diffusion
        alpha, sigma = diffusion.signal_noise()
        self.sigma_min = float(sigma[0] / alpha[0])
        self.sigma_max = float(sigma[-1] / alpha[-1]) if alpha[-1] > 0 else math.inf

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The level itself: the network sees times between its timesteps."""
        return sigma

    def forward(self, input: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The denoised images for states [B, C, ...] at levels [B]; labels reach the network as y.

        Raises:
            ValueError: a level outside the process.
        """
        kwargs |= {} if class_labels is None else {"y": class_labels}
        return Views(self.inner_model, self.diffusion, kwargs).denoise(input, sigma)


class NetworkFromDenoiser(nn.Module):
    """A network model(x, t) of a process, for `fastdiff.sample`, from a denoiser D(x; sigma).

    Args:
        denoiser: Called as denoiser(x, sigma [B], **kwargs).
        diffusion: The process: its times, and what the network is to predict.

    Raises:
        ValueError: a level of the process has no signal.
    """

    times: Tensor
    log_sigmas: Tensor

    def __init__(self, denoiser: Denoiser, diffusion: Diffusion) -> None:
        super().__init__()
        self.denoiser, self.prediction = denoiser, diffusion.prediction
        alpha, sigma = diffusion.signal_noise()
        if (alpha == 0).any():
            raise ValueError("a denoiser of finite sigma has no answer where the schedule leaves no signal")
        self.register_buffer("times", torch.tensor(diffusion.schedule.timesteps), persistent=False)
        self.register_buffer("log_sigmas", torch.tensor(np.log(sigma / alpha)), persistent=False)

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The prediction for x = alpha x_0 + sigma eps [B, C, ...] at times t [B]."""
        t = t.to(self.times.dtype).contiguous()
        above = torch.searchsorted(self.times, t).clamp(1, len(self.times) - 1) if len(self.times) > 1 else None
        if above is None:
            log_rho = self.log_sigmas.expand(len(t))
        else:
            share = (t - self.times[above - 1]) / (self.times[above] - self.times[above - 1])
            log_rho = torch.lerp(self.log_sigmas[above - 1], self.log_sigmas[above], share)
        rho = log_rho.exp()
        alpha = 1 / (rho**2 + 1).sqrt()
        a, s = per_sample(alpha.to(x.dtype), x), per_sample((alpha * rho).to(x.dtype), x)
        x0 = self.denoiser(x / a, rho.to(x.dtype), **kwargs)
        if self.prediction == "x0":
            return x0
        eps = (x - a * x0) / s
        if self.prediction == "eps":
            return eps
        return a * eps - s * x0 if self.prediction == "v" else -eps / s
