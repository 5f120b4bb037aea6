"""lucidrains' `LearnedGaussianDiffusion`: a network that predicts the noise and the reverse step's variance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.compat.lucidrains.diffusion import GaussianDiffusion
from fastdiff.ops.reference.bound import normal_kl
from fastdiff.process.diffusion import Diffusion

__all__ = ["LearnedGaussianDiffusion"]

_BITS = 1 / math.log(2)
# Values further out than this belong to the first and last of 256.
_OUTERMOST = 0.999


class LearnedPrediction(NamedTuple):
    """What a network's output says."""

    pred_noise: Tensor
    pred_x_start: Tensor
    pred_variance: Tensor


class LearnedGaussianDiffusion(GaussianDiffusion):
    """A process whose network has twice the channels: the noise, and between which variances the reverse step's lies.

    As there, the first half is the noise whatever `objective` says. `sample` with fewer steps is DDIM, where theirs
    fails. A seed gives the images and losses that it gives there.

    Args:
        model: The network; twice as many channels out as in.
        vb_loss_weight: Of the bound's terms, in bits, beside the squared error.
        args, kwargs: As `GaussianDiffusion`.

    Raises:
        ValueError: a network that does not fit.

    Source: Nichol and Dhariwal (2021), arXiv:2102.09672, eq. 15 and 16.
    """

    def __init__(self, model: nn.Module, vb_loss_weight: float = 0.001, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        out_dim = getattr(model, "out_dim", None)
        if out_dim is not None and out_dim != 2 * self.channels:
            raise ValueError(
                f"the network must have twice as many channels out as in, got {out_dim} for {self.channels}: "
                "learned_variance=True makes a Unet with these"
            )
        if self.self_condition:
            raise ValueError("a self-conditioned network has no place here")
        self.vb_loss_weight = vb_loss_weight

    @property
    def diffusion(self) -> Diffusion:
        """The process for fastdiff's own samplers and likelihoods."""
        return replace(super().diffusion, prediction="eps", variance="learned_range")

    def model_predictions(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_x_start: bool = False,
        rederive_pred_noise: bool = False,
    ) -> LearnedPrediction:
        """The noise, the image and the variance's share that the network sees in x [B, ...] at t [B]."""
        noise, variance = self.model(x, t).chunk(2, dim=1)
        start = self.predict_start_from_noise(x, t, noise)
        if clip_x_start:
            start = start.clamp(-1.0, 1.0)
            noise = self.predict_noise_from_start(x, t, start) if rederive_pred_noise else noise
        return LearnedPrediction(noise, start, variance)

    def p_mean_variance(  # type: ignore[override]
        self, *, x: Tensor, t: Tensor, clip_denoised: bool, model_output: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of the reverse step, and the predicted image."""
        output = self.model(x, t) if model_output is None else model_output
        noise, share = output.chunk(2, dim=1)
        low, high = self._at("posterior_log_variance_clipped", t, x), torch.log(self.betas)[t].reshape(-1, 1, 1, 1)
        share = (share + 1) * 0.5
        log_variance = share * high + (1 - share) * low
        start = self.predict_start_from_noise(x, t, noise)
        start = start.clamp(-1.0, 1.0) if clip_denoised else start
        return self.q_posterior(x_start=start, x_t=x, t=t)[0], log_variance.exp(), log_variance, start

    @torch.inference_mode()
    def p_sample(self, x: Tensor, t: int, x_self_cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_{t-1} and the predicted image."""
        times = torch.full((x.shape[0],), t, device=self.device, dtype=torch.int64)
        mean, _, log_variance, start = self.p_mean_variance(x=x, t=times, clip_denoised=True)
        noise = torch.randn_like(x) if t > 0 else torch.zeros_like(x)
        return mean + (0.5 * log_variance).exp() * noise, start

    def p_losses(  # type: ignore[override]
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        clip_denoised: bool = False,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """The squared error of the noise and the weighted bound: one number, or [B] with loss_reduction "none"."""
        noise = torch.randn_like(x_start) if noise is None else noise
        x = self.q_sample(x_start=x_start, t=t, noise=noise)
        output = self.model(x, t)
        true_mean, _, true_log_variance = self.q_posterior(x_start=x_start, x_t=x, t=t)
        mean, _, log_variance, _ = self.p_mean_variance(x=x, t=t, clip_denoised=clip_denoised, model_output=output)
        mean = mean.detach()
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(dim=1) * _BITS
        decoding = -_log_of_bins(x_start, mean, 0.5 * log_variance).flatten(1).mean(dim=1) * _BITS
        simple = F.mse_loss(output.chunk(2, dim=1)[0], noise, reduction="none").flatten(1).mean(dim=1)
        losses = simple + torch.where(t == 0, decoding, kl) * self.vb_loss_weight
        return losses if loss_reduction == "none" else losses.mean()


def _log_of_bins(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probabilities of 256 values by their approximation of the normal distribution, with their floor."""
    scale = torch.exp(-log_std)
    high, low = (_cdf(scale * (x - mean + side / 255.0)) for side in (1.0, -1.0))
    first, last, inner = (torch.log(p.clamp(min=1e-15)) for p in (high, 1.0 - low, high - low))
    return torch.where(x < -_OUTERMOST, first, torch.where(x > _OUTERMOST, last, inner))


def _cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
