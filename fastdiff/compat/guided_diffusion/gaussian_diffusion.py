"""`GaussianDiffusion` with their methods and dict keys, on fastdiff's schedules, tables, ops and losses.

What differs between the three projects that have such a class is as in improved- and guided-diffusion here: the
log-variance at t = 0 is that of t = 1, eps is derived again from a clipped x_0, the decoder's CDF is a tanh, and
`calc_bpd_loop` has its columns from t = T - 1 down to 0. Noise is drawn from PyTorch's generator as theirs is, so a
seed gives the images that it gives there.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff import samplers
from fastdiff.compat.guided_diffusion._signatures import parameter, with_parameters, with_parameters_of
from fastdiff.compat.guided_diffusion.enums import (
    Array,
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    get_named_beta_schedule,
)
from fastdiff.compat.guided_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl
from fastdiff.compat.guided_diffusion.nn import mean_flat
from fastdiff.compat.guided_diffusion.posterior import (
    PREDICTIONS,
    Denoise,
    GaussianMoments,
    Kwargs,
    Model,
    Terms,
    extract,
)
from fastdiff.ops.table_state import TableState
from fastdiff.tensors import per_sample

__all__ = [
    "Array",
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]

_LN2 = math.log(2.0)


class GaussianDiffusion(GaussianMoments):
    """Utilities for training and sampling diffusion models, as theirs.

    Args:
        betas: [T], in (0, 1].
        model_mean_type: What the network predicts.
        model_var_type: What the variance is.
        loss_type: What is trained.
        rescale_timesteps: If true, the network sees floating times in [0, 1000) whatever T is.
    """

    @cached_property
    def _tables(self) -> dict[tuple[Any, ...], TableState]:
        """Tables by sampler and options."""
        return {}

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise = None,
        cond_fn: Model | None = None,
        model_kwargs: Kwargs = None,
    ) -> Terms:
        """Draw x_{t-1}; see `p_mean_variance`. Returns "sample" and "pred_xstart"."""
        if denoised_fn is None and cond_fn is None and self._can_fuse(x):
            return self._fused_step(model, x, t, "ddpm", clip_denoised, 0.0, model_kwargs)
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = _noise_like(x)
        if cond_fn is not None:
            out["mean"] = self.condition_mean(cond_fn, out, x, t, model_kwargs=model_kwargs)
        scale = _where_noisy(t, x) * torch.exp(0.5 * out["log_variance"])
        return {"sample": out["mean"] + scale * noise, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise = None,
        cond_fn: Model | None = None,
        model_kwargs: Kwargs = None,
        eta: float = 0.0,
    ) -> Terms:
        """Draw x_{t-1} by DDIM; eta is the scale of its noise. Returns "sample" and "pred_xstart"."""
        if denoised_fn is None and cond_fn is None and 0 <= eta <= 1 and self._can_fuse(x):
            return self._fused_step(model, x, t, "ddim", clip_denoised, eta, model_kwargs)
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        if cond_fn is not None:
            out = self.condition_score(cond_fn, out, x, t, model_kwargs=model_kwargs)
        eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
        noise = _noise_like(x)
        sigma = extract(eta * np.sqrt(self.posterior_variance), t, x)
        prev = extract(self.schedule.one_minus_alphas_cumprod_prev, t, x)
        mean = out["pred_xstart"] * extract(np.sqrt(self.alphas_cumprod_prev), t, x)
        mean = mean + torch.sqrt((prev - sigma**2).clamp(min=0)) * eps
        return {"sample": mean + _where_noisy(t, x) * sigma * noise, "pred_xstart": out["pred_xstart"]}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise = None,
        model_kwargs: Kwargs = None,
        eta: float = 0.0,
    ) -> Terms:
        """x_{t+1} by the DDIM ODE run from data to noise. Returns "sample" and "pred_xstart".

        Raises:
            ValueError: eta is not 0.
        """
        if eta != 0.0:
            raise ValueError(f"the reverse ODE is only for the deterministic path: eta must be 0, got {eta}")
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
        signal = extract(np.sqrt(self.alphas_cumprod_next), t, x)
        sample = out["pred_xstart"] * signal + extract(np.sqrt(1 - self.alphas_cumprod_next), t, x) * eps
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise = None,
        cond_fn: Model | None = None,
        model_kwargs: Kwargs = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Iterator[Terms]:
        """The dict of `p_sample` after each step."""
        options: dict[str, Any] = {"denoised_fn": denoised_fn, "cond_fn": cond_fn, "model_kwargs": model_kwargs}
        options |= {"clip_denoised": clip_denoised}
        return self._loop(self.p_sample, model, shape, noise=noise, device=device, progress=progress, **options)

    @with_parameters_of(p_sample_loop_progressive)
    def p_sample_loop(self, **arguments: Any) -> Tensor:
        """Sample images of `shape` by the ancestral process; see `p_sample`.

        Args:
            model: The network.
            shape: (N, C, H, W).
            noise: To start from; drawn if None.
            clip_denoised: Clip the predictions of x_0 to [-1, 1].
            denoised_fn: Applied to those predictions before.
            cond_fn: Gradient of a classifier, (x, times, **model_kwargs) -> x's shape.
            model_kwargs: Passed to the model and to cond_fn.
            device: Of the images; the model's if None.
            progress: Show a bar.
        """
        return _last(self.p_sample_loop_progressive(**arguments))

    @with_parameters([*inspect.signature(p_sample_loop_progressive).parameters.values(), parameter("eta", 0.0, 0.0)])
    def ddim_sample_loop_progressive(self, **arguments: Any) -> Iterator[Terms]:
        """The dict of `ddim_sample` after each step."""
        return self._loop(self.ddim_sample, **arguments)

    @with_parameters_of(ddim_sample_loop_progressive)
    def ddim_sample_loop(self, **arguments: Any) -> Tensor:
        """Sample images of `shape` by DDIM; arguments as in `p_sample_loop`."""
        return _last(self.ddim_sample_loop_progressive(**arguments))

    def _loop(
        self,
        step: Callable[..., Terms],
        model: Model,
        shape: Sequence[int],
        *,
        noise: Tensor | None,
        device: torch.device | str | None,
        progress: bool,
        **options: Any,
    ) -> Iterator[Terms]:
        """Walk from noise to an image; `options` are the step's."""
        if device is None:
            device = next(cast(nn.Module, model).parameters()).device
        image = torch.randn(*shape, device=device) if noise is None else noise
        indices: Any = range(self.num_timesteps - 1, -1, -1)
        if progress:
            from rich.progress import track

            indices = track(indices, description="sampling", transient=True)
        for i in indices:
            t = _all_at(i, image)
            with torch.no_grad():
                out = step(model, image, t, **options)
            yield out
            image = out["sample"]

    def _can_fuse(self, x: Tensor) -> bool:
        """Whether a step is a row of a table: no gradients, nothing replaced, a prediction that tables know."""
        kept = (
            "p_mean_variance", "q_posterior_mean_variance", "_predict_xstart_from_eps", "_predict_eps_from_xstart",
            "_split_variance",
        )  # fmt: skip
        return (
            self.model_mean_type in PREDICTIONS
            and not torch.is_grad_enabled()
            and x.dim() >= 2
            and all(
                name not in vars(self) and getattr(type(self), name) is getattr(GaussianDiffusion, name)
                for name in kept
            )
            and self._has_its_arrays()
            and float(self.alphas_cumprod[-1]) > 0
        )

    def _fused_step(
        self, model: Model, x: Tensor, t: Tensor, sampler: str, clip: bool, eta: float, model_kwargs: Kwargs
    ) -> Terms:
        """One row of fastdiff's table of the sampler, with noise from PyTorch's generator."""
        output = self._call(model, x, t, model_kwargs)
        state = self._state(sampler, clip, eta)
        x = x.contiguous(memory_format=torch.contiguous_format)
        noise = _noise_like(x)
        if self._learns_variance and not state.table.learned_variance:
            # DDIM does not read the variance.
            output = output[:, : x.shape[1]]
        row = self.num_timesteps - 1 - t
        sample, pred = state.step(row, x, output.contiguous(), noise=noise, prediction=True)
        assert pred is not None
        return {"sample": sample, "pred_xstart": pred}

    def _state(self, sampler: str, clip: bool, eta: float) -> TableState:
        key = (sampler, clip, eta)
        if key not in self._tables:
            options: dict[str, Any] = {"clip": 1.0 if clip else None}
            options |= {"eta": eta} if sampler == "ddim" else {}
            self._tables[key] = TableState(samplers.build(sampler, self.diffusion, self.num_timesteps, **options))
        return self._tables[key]

    # Training and scoring.

    def _vb_terms_bpd(
        self,
        model: Model,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        model_kwargs: Kwargs = None,
    ) -> Terms:
        """A term of the bound in bits per dimension, [B], under "output", and "pred_xstart"."""
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)
        out = self.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
        kl = mean_flat(normal_kl(true_mean, true_log_variance, out["mean"], out["log_variance"])) / _LN2
        nll = -discretized_gaussian_log_likelihood(x_start, means=out["mean"], log_scales=0.5 * out["log_variance"])
        output = torch.where(t == 0, mean_flat(nll) / _LN2, kl)
        return {"output": output, "pred_xstart": out["pred_xstart"]}

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: Kwargs = None,
        noise: Tensor | None = None,
    ) -> Terms:
        """The losses of one timestep per image.

        Args:
            model: The network.
            x_start: Images [B, C, ...] in [-1, 1].
            t: int64 [B].
            model_kwargs: Passed to the model.
            noise: Of x_t; drawn if None.

        Returns:
            "loss" [B], and where they are parts of it "mse" and "vb" [B]. The bound's term sees the prediction
            detached, so that it trains the variance alone.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise=noise)
        if self.loss_type.is_vb():
            loss = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised=False, model_kwargs=model_kwargs)["output"]
            return {"loss": loss * self.num_timesteps if self.loss_type == LossType.RESCALED_KL else loss}
        output = self._call(model, x_t, t, model_kwargs)
        terms: Terms = {}
        if self._learns_variance:
            channels = x_t.shape[1]
            if output.shape[:2] != (x_t.shape[0], 2 * channels):
                raise ValueError(
                    f"the model must give {2 * channels} channels for a learned variance, got {list(output.shape)}"
                )
            output, values = output.split(channels, dim=1)
            frozen = torch.cat([output.detach(), values], dim=1)
            terms["vb"] = self._vb_terms_bpd(lambda *args: frozen, x_start, x_t, t, clip_denoised=False)["output"]
            if self.loss_type == LossType.RESCALED_MSE:
                terms["vb"] = terms["vb"] * (self.num_timesteps / 1000.0)
        if self.model_mean_type == ModelMeanType.PREVIOUS_X:
            target = self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)[0]
        else:
            target = x_start if self.model_mean_type == ModelMeanType.START_X else noise
        terms["mse"] = mean_flat((target - output) ** 2)
        terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
        return terms

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        """KL(q(x_T | x_0) || N(0, I)) in bits per dimension, [B]; it does not depend on the network."""
        t = _all_at(self.num_timesteps - 1, x_start)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / _LN2

    def calc_bpd_loop(
        self, model: Model, x_start: Tensor, clip_denoised: bool = True, model_kwargs: Kwargs = None
    ) -> Terms:
        """The variational bound and its terms, in bits per dimension.

        Returns:
            "total_bpd" and "prior_bpd" [B]; "vb", "xstart_mse" and "mse" [B, T], the columns from t = T - 1 down to 0.
        """
        found: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for i in range(self.num_timesteps - 1, -1, -1):
            t = _all_at(i, x_start)
            noise = torch.randn_like(x_start)
            x_t = self.q_sample(x_start=x_start, t=t, noise=noise)
            with torch.no_grad():
                out = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)
            eps = self._predict_eps_from_xstart(x_t, t, out["pred_xstart"])
            found["vb"].append(out["output"])
            found["xstart_mse"].append(mean_flat((out["pred_xstart"] - x_start) ** 2))
            found["mse"].append(mean_flat((eps - noise) ** 2))
        terms = {name: torch.stack(values, dim=1) for name, values in found.items()}
        prior = self._prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(dim=1) + prior, "prior_bpd": prior, **terms}


def _extract_into_tensor(arr: Array, timesteps: Tensor, broadcast_shape: Sequence[int]) -> Tensor:
    """Entries of an array [T] at timesteps [B], float32 of `broadcast_shape`."""
    values = torch.tensor(arr, device=timesteps.device)[timesteps].float()
    return values.view(-1, *[1] * (len(broadcast_shape) - 1)).expand(*broadcast_shape)


def _noise_like(x: Tensor) -> Tensor:
    """Noise that does not depend on x's layout in memory: a network's output, and so a state, may be channels_last."""
    return torch.randn_like(x, memory_format=torch.contiguous_format)


def _where_noisy(t: Tensor, x: Tensor) -> Tensor:
    """1 where a step draws noise, 0 at t = 0; [B, 1, ...]."""
    return per_sample((t != 0).to(x.dtype), x)


def _last(steps: Iterator[Terms]) -> Tensor:
    return deque(steps, maxlen=1).pop()["sample"]


def _all_at(t: int, x: Tensor) -> Tensor:
    """The timestep of every sample, int64 [B]."""
    return torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64)
