"""What is known of a process at each timestep: the means and variances of q and p, and a classifier's pull on them.

What differs between the three projects that have such functions is as in improved- and guided-diffusion here: the
log-variance at t = 0 is that of t = 1, and eps is derived again from a clipped x_0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.compat.guided_diffusion.enums import (
    Array,
    LossType,
    ModelMeanType,
    ModelVarType,
)
from fastdiff.process.diffusion import Diffusion, Prediction, Variance
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.tensors import compute_dtype, per_sample

__all__ = ["PREDICTIONS", "Denoise", "GaussianMoments", "Kwargs", "Model", "Terms", "extract"]

Model = Callable[..., Tensor]
Kwargs = dict[str, Any] | None
Denoise = Callable[[Tensor], Tensor] | None
Terms = dict[str, Tensor]

_VARIANCES: dict[ModelVarType, Variance] = {
    ModelVarType.LEARNED: "learned",
    ModelVarType.FIXED_SMALL: "fixed_small",
    ModelVarType.FIXED_LARGE: "fixed_large",
    ModelVarType.LEARNED_RANGE: "learned_range",
}
PREDICTIONS: dict[ModelMeanType, Prediction] = {ModelMeanType.START_X: "x0", ModelMeanType.EPSILON: "eps"}


class GaussianMoments:
    """The part of `GaussianDiffusion` that neither samples nor trains.

    Args:
        betas: [T], in (0, 1].
        model_mean_type: What the network predicts.
        model_var_type: What the variance is.
        loss_type: What is trained.
        rescale_timesteps: If true, the network sees floating times in [0, 1000) whatever T is.
    """

    def __init__(
        self,
        *,
        betas: Sequence[float] | Array,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
    ) -> None:
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps
        schedule = NoiseSchedule.from_betas(betas)
        self.schedule = schedule
        self.betas: Array = schedule.betas
        self.num_timesteps = len(schedule)
        abar = schedule.alphas_cumprod
        self.alphas_cumprod: Array = abar
        self.alphas_cumprod_prev: Array = schedule.alphas_cumprod_prev
        self.alphas_cumprod_next: Array = np.append(abar[1:], 0.0)
        self.sqrt_alphas_cumprod: Array = np.sqrt(abar)
        self.sqrt_one_minus_alphas_cumprod: Array = np.sqrt(schedule.one_minus_alphas_cumprod)
        self.log_one_minus_alphas_cumprod: Array = np.log(schedule.one_minus_alphas_cumprod)
        with np.errstate(divide="ignore"):
            self.sqrt_recip_alphas_cumprod: Array = np.sqrt(1 / abar)
            self.sqrt_recipm1_alphas_cumprod: Array = np.sqrt(schedule.one_minus_alphas_cumprod / abar)
        self.posterior_variance: Array = schedule.posterior_variance
        self.posterior_log_variance_clipped: Array = schedule.posterior_log_variance_clipped
        self.posterior_mean_coef1: Array = schedule.posterior_mean_coef1
        self.posterior_mean_coef2: Array = schedule.posterior_mean_coef2
        self._built = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        for array in self._built.values():
            # Another array may be put in its place, which is seen; a change within would not be.
            array.flags.writeable = False
        self._variance_logs = Diffusion(schedule, "eps", _VARIANCES[model_var_type]).variance_logs()

    @property
    def diffusion(self) -> Diffusion:
        """The same process for fastdiff's own samplers and likelihoods, with the times that the network sees.

        Raises:
            ValueError: the network predicts the previous state, which fastdiff does not know.
        """
        if self.model_mean_type not in PREDICTIONS:
            raise ValueError("a network that predicts the previous state (PREVIOUS_X) is known to this class alone")
        schedule = NoiseSchedule(self.betas, self._network_times(), self.schedule.name)
        return Diffusion(schedule, PREDICTIONS[self.model_mean_type], _VARIANCES[self.model_var_type])

    def _has_its_arrays(self) -> bool:
        """Whether nobody has replaced the arrays of the schedule."""
        return all(getattr(self, name) is value for name, value in self._built.items())

    def _logs_of_variances(self) -> tuple[Array, Array]:
        """The least and the largest log-variance at each timestep, equal where nothing is learned."""
        if self._has_its_arrays():
            return self._variance_logs
        small, large = self.posterior_log_variance_clipped, np.log(self.betas)
        if self.model_var_type == ModelVarType.FIXED_LARGE:
            small = large = np.append(np.log(self.posterior_variance[1]), large[1:])
        return small, large if self.model_var_type == ModelVarType.LEARNED_RANGE else small

    def _network_times(self) -> Array:
        """The times that the network sees, [T]."""
        times = np.arange(self.num_timesteps, dtype=np.float64)
        return times * (1000.0 / self.num_timesteps) if self.rescale_timesteps else times

    def _wrap_model(self, model: Model) -> Model:
        """The model as it is to be called with `_scale_timesteps(t)`; a respaced process maps the times."""
        return model

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        return t.float() * (1000.0 / self.num_timesteps) if self.rescale_timesteps else t

    def _call(self, model: Model, x: Tensor, t: Tensor, model_kwargs: Kwargs) -> Tensor:
        return self._wrap_model(model)(x, self._scale_timesteps(t), **(model_kwargs or {}))

    @property
    def _learns_variance(self) -> bool:
        return self.model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)

    # The forward process.

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of q(x_t | x_0), each of x_start's shape; t is int64 [B]."""
        mean = extract(self.sqrt_alphas_cumprod, t, x_start) * x_start
        variance = extract(self.schedule.one_minus_alphas_cumprod, t, x_start)
        log_variance = extract(self.log_one_minus_alphas_cumprod, t, x_start)
        return mean, variance.expand_as(x_start), log_variance.expand_as(x_start)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t for images [B, ...] and t [B]; the noise is drawn where it is not given."""
        noise = torch.randn_like(x_start) if noise is None else noise
        if noise.shape != x_start.shape:
            raise ValueError(f"noise must have the shape {list(x_start.shape)}, got {list(noise.shape)}")
        signal = extract(self.sqrt_alphas_cumprod, t, x_start)
        return signal * x_start + extract(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0), each of x_t's shape."""
        if x_start.shape != x_t.shape:
            raise ValueError(f"x_start and x_t must have one shape, got {list(x_start.shape)} and {list(x_t.shape)}")
        mean = extract(self.posterior_mean_coef1, t, x_t) * x_start + extract(self.posterior_mean_coef2, t, x_t) * x_t
        variance = extract(self.posterior_variance, t, x_t).expand_as(x_t)
        return mean, variance, extract(self.posterior_log_variance_clipped, t, x_t).expand_as(x_t)

    # The reverse process.

    def p_mean_variance(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise = None,
        model_kwargs: Kwargs = None,
    ) -> Terms:
        """The reverse step p(x_{t-1} | x_t) and the prediction of x_0.

        Args:
            model: (x [B, C, ...], times [B], **model_kwargs) -> [B, C or 2C, ...].
            x: [B, C, ...] at time t.
            t: int64 [B].
            clip_denoised: Clip the prediction of x_0 to [-1, 1].
            denoised_fn: Applied to that prediction before it is clipped.
            model_kwargs: Passed to the model.

        Returns:
            "mean", "variance", "log_variance" and "pred_xstart", each of x's shape.

        Raises:
            ValueError: the model's output has another shape.
        """
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape [{x.shape[0]}], got {list(t.shape)}")
        output = self._call(model, x, t, model_kwargs)
        output, variance, log_variance = self._split_variance(output, x, t)

        def process(x_start: Tensor) -> Tensor:
            x_start = x_start if denoised_fn is None else denoised_fn(x_start)
            return x_start.clamp(-1, 1) if clip_denoised else x_start

        if self.model_mean_type == ModelMeanType.PREVIOUS_X:
            pred = process(self._predict_xstart_from_xprev(x_t=x, t=t, xprev=output))
            mean = output
        else:
            is_x0 = self.model_mean_type == ModelMeanType.START_X
            pred = process(output if is_x0 else self._predict_xstart_from_eps(x_t=x, t=t, eps=output))
            mean, _, _ = self.q_posterior_mean_variance(x_start=pred, x_t=x, t=t)
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": pred}

    def _split_variance(self, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        expected = [x.shape[0], channels * (2 if self._learns_variance else 1), *x.shape[2:]]
        if list(output.shape) != expected:
            raise ValueError(f"the model's output must have shape {expected}, got {list(output.shape)}")
        log_min, log_max = self._logs_of_variances()
        if self._learns_variance:
            output, values = output.split(channels, dim=1)
            share = (values + 1) / 2
            log_variance = share * extract(log_max, t, x) + (1 - share) * extract(log_min, t, x)
            return output, log_variance.exp(), log_variance
        # Their table of the small variance is 0 at t = 0, where its log is that of t = 1.
        variance = self.posterior_variance if self.model_var_type == ModelVarType.FIXED_SMALL else np.exp(log_min)
        return output, extract(variance, t, x).expand_as(x), extract(log_min, t, x).expand_as(x)

    def _predict_xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        scaled = extract(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t
        return scaled - extract(self.sqrt_recipm1_alphas_cumprod, t, x_t) * eps

    def _predict_xstart_from_xprev(self, x_t: Tensor, t: Tensor, xprev: Tensor) -> Tensor:
        ratio = self.posterior_mean_coef2 / self.posterior_mean_coef1
        return extract(1.0 / self.posterior_mean_coef1, t, x_t) * xprev - extract(ratio, t, x_t) * x_t

    def _predict_eps_from_xstart(self, x_t: Tensor, t: Tensor, pred_xstart: Tensor) -> Tensor:
        scaled = extract(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t - pred_xstart
        return scaled / extract(self.sqrt_recipm1_alphas_cumprod, t, x_t)

    def condition_mean(
        self, cond_fn: Model, p_mean_var: Terms, x: Tensor, t: Tensor, model_kwargs: Kwargs = None
    ) -> Tensor:
        """The mean shifted by variance times cond_fn, the gradient of log p(y | x). Source: Sohl-Dickstein (2015)."""
        gradient = self._call(cond_fn, x, t, model_kwargs)
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self, cond_fn: Model, p_mean_var: Terms, x: Tensor, t: Tensor, model_kwargs: Kwargs = None
    ) -> Terms:
        """The dict of `p_mean_variance` as if the score were that of p(x | y). Source: Song (2020)."""
        gradient = self._call(cond_fn, x, t, model_kwargs)
        eps = self._predict_eps_from_xstart(x, t, p_mean_var["pred_xstart"])
        eps = eps - extract(self.sqrt_one_minus_alphas_cumprod, t, x) * gradient
        pred = self._predict_xstart_from_eps(x, t, eps)
        mean, _, _ = self.q_posterior_mean_variance(x_start=pred, x_t=x, t=t)
        return {**p_mean_var, "pred_xstart": pred, "mean": mean}


def extract(array: Array, t: Tensor, x: Tensor) -> Tensor:
    """Entries of an array [T] at t [B], as [B, 1, ...] that broadcasts against x; float64 for a float64 x."""
    return per_sample(torch.tensor(array, dtype=compute_dtype(x), device=t.device)[t], x)
