"""lucidrains' processes in continuous time, of eps and of v, on coefficient tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.ops.table_state import TableState
from fastdiff.process.coordinates import Coordinates
from fastdiff.process.diffusion import Diffusion, Prediction
from fastdiff.process.parametrization import Parametrization
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.process.table import CoefficientTable
from fastdiff.tensors import per_sample

__all__ = ["ContinuousTimeGaussianDiffusion", "VParamContinuousTimeGaussianDiffusion"]

# The network is given the log-SNR: twice log(alpha / sigma).
_SEEN = Coordinates("preserving", "log_sigma", -2.0)
# Timesteps of the process that `diffusion` gives.
_NUM_TIMESTEPS = 1000


def linear_log_snr(t: Tensor) -> Tensor:
    """Log-SNR that is nearly Ho's linear schedule, for t in [0, 1]."""
    return -torch.log(torch.special.expm1(1e-4 + 10 * t**2).clamp(min=1e-20))


def cosine_log_snr(t: Tensor, s: float = 0.008) -> Tensor:
    """Log-SNR of the cosine schedule, for t in [0, 1]."""
    return -torch.log((torch.cos((t + s) / (1 + s) * math.pi * 0.5) ** -2 - 1).clamp(min=1e-5))


class _MonotonicLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.net.weight.abs(), self.net.bias.abs())


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)  # type: ignore[no-any-return]


class LearnedLogSnr(nn.Module):
    """A log-SNR that falls with t along a learned monotone function.

    Args:
        log_snr_max: At t = 0.
        log_snr_min: At t = 1.
        hidden_dim: Of the function's network.
        frac_gradient: Share of the gradient that reaches it.

    Source: Kingma et al. (2021), arXiv:2107.00630, appendix H and I.2.
    """

    def __init__(
        self, *, log_snr_max: float, log_snr_min: float, hidden_dim: int = 1024, frac_gradient: float = 1.0
    ) -> None:
        super().__init__()
        self.slope, self.intercept = log_snr_min - log_snr_max, log_snr_max
        inner = nn.Sequential(_MonotonicLinear(1, hidden_dim), nn.Sigmoid(), _MonotonicLinear(hidden_dim, 1))
        # Their first and last modules have no weights.
        self.net = nn.Sequential(nn.Unflatten(-1, (-1, 1)), _MonotonicLinear(1, 1), _Residual(inner), nn.Flatten(-2))
        self.frac_gradient = frac_gradient

    def forward(self, x: Tensor) -> Tensor:
        """The log-SNR at times of any shape."""
        times = x.reshape(-1)
        zero, one, here = self.net(torch.zeros_like(times)), self.net(torch.ones_like(times)), self.net(times)
        found = (self.slope * ((here - zero) / (one - zero)) + self.intercept).reshape(x.shape)
        return found * self.frac_gradient + found.detach() * (1 - self.frac_gradient)  # type: ignore[no-any-return]


class _Continuous(nn.Module):
    """What both have: a network that is given the log-SNR of a variance-preserving state."""

    prediction: Prediction
    log_snr: Callable[[Tensor], Tensor]

    def __init__(
        self, model: nn.Module, image_size: int, channels: int, num_sample_steps: int, clip_sample_denoised: bool
    ) -> None:
        super().__init__()
        if not getattr(model, "random_or_learned_sinusoidal_cond", False):
            raise ValueError("the network is given the log-SNR: make it with learned_sinusoidal_cond=True, or random")
        self.model = model
        self.channels = channels
        self.image_size = image_size
        self.num_sample_steps = num_sample_steps
        self.clip_sample_denoised = clip_sample_denoised

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def diffusion(self) -> Diffusion:
        """The process on 1000 timesteps, even in time, for fastdiff's own samplers and likelihoods."""
        times = torch.arange(1, _NUM_TIMESTEPS + 1, device=self.device, dtype=torch.float32) / _NUM_TIMESTEPS
        with torch.no_grad():
            log_snr = self.log_snr(times).double().cpu().numpy()
        return Diffusion(NoiseSchedule.from_log_snr(log_snr, _SEEN), self.prediction)

    def p_mean_variance(self, x: Tensor, time: Tensor, time_next: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, ...] and variance of the reverse step between two times, each one number."""
        log_snr, following = self.log_snr(time), self.log_snr(time_next)
        c = -torch.special.expm1(log_snr - following)
        alpha, sigma, alpha_next = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt(), following.sigmoid().sqrt()
        output = self.model(x, log_snr.expand(x.shape[0]))
        start = (x - sigma * output) / alpha if self.prediction == "eps" else alpha * x - sigma * output
        start = start.clamp(-1.0, 1.0) if self.clip_sample_denoised else start
        return alpha_next * (x * (1 - c) / alpha + c * start), (-following).sigmoid() * c

    @torch.no_grad()
    def p_sample(self, x: Tensor, time: Tensor, time_next: Tensor) -> Tensor:
        """The state at `time_next`, with fresh noise but at time 0."""
        mean, variance = self.p_mean_variance(x=x, time=time, time_next=time_next)
        return mean if time_next == 0 else mean + variance.sqrt() * torch.randn_like(x)

    @torch.no_grad()
    def p_sample_loop(self, shape: tuple[int, ...]) -> Tensor:
        """Images of `shape`, in [0, 1]."""
        x = torch.randn(shape, device=self.device)
        steps = torch.linspace(1.0, 0.0, self.num_sample_steps + 1, device=self.device)
        if not all(getattr(type(self), name) is getattr(_Continuous, name) for name in ("p_sample", "p_mean_variance")):
            for time, following in pairwise(steps):
                x = self.p_sample(x, time, following)
            return (x.clamp(-1.0, 1.0) + 1) * 0.5
        state = TableState(self._table(self.log_snr(steps).double().cpu().numpy()))
        for row in range(len(state.table)):
            output = self.model(*state.network_input(row, x)).contiguous()
            noise = torch.randn_like(x) if row < len(state.table) - 1 else torch.zeros_like(x)
            x, _ = state.step(row, x, output, noise=noise)
        return (x.clamp(-1.0, 1.0) + 1) * 0.5

    def _table(self, log_snr: np.ndarray[Any, np.dtype[np.float64]]) -> CoefficientTable:
        """A row from each level to the next; Kingma et al. (2021), eq. 32 and 33."""
        here, there = log_snr[:-1], log_snr[1:]
        c = -np.expm1(here - there)
        alpha, sigma = 1 / np.sqrt(1 + np.exp(-here)), 1 / np.sqrt(1 + np.exp(here))
        alpha_next, variance = 1 / np.sqrt(1 + np.exp(-there)), 1 / (1 + np.exp(there))
        px, pm = Parametrization(self.prediction).x0(alpha, sigma)
        columns = {
            "t": here, "px": px, "pm": pm, "clip": 1.0 if self.clip_sample_denoised else np.inf,
            "cx": alpha_next * (1 - c) / alpha, "c0": alpha_next * c, "s": np.append(np.sqrt(variance * c)[:-1], 0.0),
        }  # fmt: skip
        return CoefficientTable(columns, "continuous")

    @torch.no_grad()
    def sample(self, batch_size: int = 16) -> Tensor:
        """Images [batch_size, C, H, W] in [0, 1]."""
        return self.p_sample_loop((batch_size, self.channels, self.image_size, self.image_size))

    def random_times(self, batch_size: int) -> Tensor:
        """Uniform times in [0, 1], [batch_size]."""
        return torch.zeros((batch_size,), device=self.device).float().uniform_(0, 1)

    def _noised(self, x_start: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t, the log-SNR [B], and alpha and sigma shaped against x_t."""
        log_snr = self.log_snr(times)
        shaped = per_sample(log_snr, x_start)
        alpha, sigma = shaped.sigmoid().sqrt(), (-shaped).sigmoid().sqrt()
        return x_start * alpha + noise * sigma, log_snr, alpha, sigma

    def forward(
        self, img: Tensor, *args: Any, times: Tensor | None = None, loss_reduction: str = "mean", **kwargs: Any
    ) -> Tensor:
        """The loss of images [B, C, H, W] in [0, 1]."""
        x = self._checked(img)
        times = self.random_times(img.shape[0]) if times is None else times
        return self.p_losses(x, times, *args, loss_reduction=loss_reduction, **kwargs)  # type: ignore[operator, no-any-return]

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target, reduction="none").flatten(1).mean(dim=1)

    def _checked(self, img: Tensor) -> Tensor:
        """Images in [0, 1] as the network has them. Raises ValueError for another size."""
        if tuple(img.shape[2:]) != (self.image_size, self.image_size):
            raise ValueError(f"images must be {self.image_size} high and wide, got {list(img.shape[2:])}")
        return img * 2 - 1


class ContinuousTimeGaussianDiffusion(_Continuous):
    """A network that predicts the noise, at any time in [0, 1]: called with images it gives the loss.

    Noise is drawn from PyTorch's generator in their order, so that a seed gives the images it gives there; its state
    dict has their names.

    Args:
        model: A network that is given the log-SNR, with random or learned frequencies.
        image_size: Height and width.
        channels: Of the images.
        noise_schedule: "linear", "cosine" or "learned".
        num_sample_steps: Of `sample`.
        clip_sample_denoised: Clip the predicted image to [-1, 1].
        learned_schedule_net_hidden_dim: Of the learned schedule.
        learned_noise_schedule_frac_gradient: Share of the gradient that reaches it.
        min_snr_loss_weight: Weigh the loss by the signal-to-noise ratio, at most `min_snr_gamma`.
        min_snr_gamma: See above.

    Raises:
        ValueError: an unknown schedule, or a network that does not fit.
    """

    prediction = "eps"

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int,
        channels: int = 3,
        noise_schedule: str = "linear",
        num_sample_steps: int = 500,
        clip_sample_denoised: bool = True,
        learned_schedule_net_hidden_dim: int = 1024,
        learned_noise_schedule_frac_gradient: float = 1.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5,
    ) -> None:
        super().__init__(model, image_size, channels, num_sample_steps, clip_sample_denoised)
        if getattr(model, "self_condition", False):
            raise ValueError("a self-conditioned network has no place here")
        if noise_schedule not in ("linear", "cosine", "learned"):
            raise ValueError(f"noise_schedule must be 'linear', 'cosine' or 'learned', got {noise_schedule!r}")
        if noise_schedule == "learned":
            high, low = (linear_log_snr(torch.tensor([time])).item() for time in (0.0, 1.0))
            self.log_snr = LearnedLogSnr(
                log_snr_max=high, log_snr_min=low, hidden_dim=learned_schedule_net_hidden_dim,
                frac_gradient=learned_noise_schedule_frac_gradient,
            )  # fmt: skip
        else:
            self.log_snr = linear_log_snr if noise_schedule == "linear" else cosine_log_snr
        self.min_snr_loss_weight = min_snr_loss_weight
        self.min_snr_gamma = min_snr_gamma

    def q_sample(self, x_start: Tensor, times: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t and the log-SNR [B], for images in [-1, 1] and times [B]."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return self._noised(x_start, times, noise)[:2]

    def p_losses(
        self, x_start: Tensor, times: Tensor, noise: Tensor | None = None, loss_reduction: str = "mean"
    ) -> Tensor:
        """The loss of images in [-1, 1]: one number, or [B] with loss_reduction="none"."""
        noise = torch.randn_like(x_start) if noise is None else noise
        x, log_snr = self.q_sample(x_start=x_start, times=times, noise=noise)
        losses = self._losses(self.model(x, log_snr), noise)
        if self.min_snr_loss_weight:
            snr = log_snr.exp()
            losses = losses * (snr.clamp(max=self.min_snr_gamma) / snr)
        return losses if loss_reduction == "none" else losses.mean()


class VParamContinuousTimeGaussianDiffusion(_Continuous):
    """The same for a network that predicts v, on the cosine schedule.

    Args, Raises: as `ContinuousTimeGaussianDiffusion`.
    """

    prediction = "v"

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int,
        channels: int = 3,
        num_sample_steps: int = 500,
        clip_sample_denoised: bool = True,
    ) -> None:
        super().__init__(model, image_size, channels, num_sample_steps, clip_sample_denoised)
        if getattr(model, "self_condition", False):
            raise ValueError("a self-conditioned network has no place here")
        self.log_snr = cosine_log_snr

    def q_sample(
        self, x_start: Tensor, times: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t, the log-SNR [B], alpha and sigma, for images in [-1, 1] and times [B]."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return self._noised(x_start, times, noise)

    def p_losses(
        self, x_start: Tensor, times: Tensor, noise: Tensor | None = None, loss_reduction: str = "mean"
    ) -> Tensor:
        """The loss of images in [-1, 1]: one number, or [B] with loss_reduction="none"."""
        noise = torch.randn_like(x_start) if noise is None else noise
        x, log_snr, alpha, sigma = self.q_sample(x_start=x_start, times=times, noise=noise)
        losses = self._losses(self.model(x, log_snr), alpha * noise - sigma * x_start)
        return losses if loss_reduction == "none" else losses.mean()
