"""One network, seen as everything that it can predict: eps, x_0, v, the score, a velocity, EDM's F, D(x; sigma)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.nets.model import Model, eval_mode, model_dtype, split_output
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.interpolation import log_abar_at_time, signal_noise_at, time_at_position
from fastdiff.process.parametrization import Parametrization, Prediction
from fastdiff.process.schedule import Array
from fastdiff.samplers.levels import position_of
from fastdiff.tensors import compute_dtype, per_sample, time_tensor

__all__ = ["Views"]


@dataclass(frozen=True, eq=False)
class Views:
    """The predictions of one network, for x = alpha x_0 + sigma eps, alpha^2 + sigma^2 = 1, at the network's time t.

    They are one thing in seven ways: x_0 = (x - sigma eps) / alpha, v = alpha eps - sigma x_0, score = -eps / sigma,
    a flow's velocity is eps - x_0, EDM's F has x_0 = c_skip x + c_out F, and D(y; s) is the x_0 of alpha y at the t
    where sigma / alpha = s. Between the timesteps log alpha is linear in t.

    Attributes:
        model: Any callable (x [B, C, ...], t [B], **model_kwargs) -> [B, C or 2C, ...]; run in eval mode.
        diffusion: What the network was trained on.
        model_kwargs: Passed to the model at each call.
        clip: Bound on the predicted x_0, in units of the data, before the other views are taken; None for no bound.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 15; Salimans and Ho (2022), arXiv:2202.00512, appendix D; Karras et
    al. (2022), arXiv:2206.00364, eq. 3 and 7; Lipman et al. (2023), arXiv:2210.02747.
    """

    model: Model
    diffusion: Diffusion
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = None

    def __repr__(self) -> str:
        model = type(self.model).__name__ if isinstance(self.model, torch.nn.Module) else repr(self.model)
        return f"Views({model}, {self.diffusion}, clip={self.clip})"

    def x0(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The predicted image.

        Args:
            x: States [B, C, ...], floating point.
            t: The network's time, one number or [B], between the schedule's first and last; whole or not.

        Returns:
            x's shape, float32 (float64 for float64). Gradients flow where the model lets them.

        Raises:
            ValueError: t out of range, or shapes that do not fit.
        """
        times, alpha, sigma = self._levels(x, t)
        network = self.diffusion.parametrization
        px, pm = (self._shaped(c, x) for c in network.x0(alpha, sigma))
        network_t = time_tensor(times, x.device)
        with eval_mode(self.model):
            # A copy: the model may write to its input, and x is the caller's.
            given = x.to(model_dtype(self.model, compute_dtype(x)), copy=True)
            if not network.is_given_the_state:
                scale = self._shaped(network.input_scale(alpha, sigma), x)
                given = (scale * x.to(scale.dtype)).to(given.dtype)
            output = self.model(given, network_t, **self.model_kwargs)
        output = split_output(output, x, self.diffusion.learned_variance)[0]
        predicted = px * x.to(px.dtype) + pm * output.to(px.dtype)
        return predicted if self.clip is None else predicted.clamp(-self.clip, self.clip)

    def eps(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The predicted noise, (x - alpha x_0) / sigma; arguments as `x0`."""
        _, alpha, sigma = self._levels(x, t)
        x0 = self.x0(x, t)
        return (x.to(x0.dtype) - self._shaped(alpha, x) * x0) / self._shaped(sigma, x)

    def v(self, x: Tensor, t: Tensor | float) -> Tensor:
        """alpha eps - sigma x_0 = (alpha x - x_0) / sigma; arguments as `x0`."""
        _, alpha, sigma = self._levels(x, t)
        x0 = self.x0(x, t)
        return (self._shaped(alpha, x) * x.to(x0.dtype) - x0) / self._shaped(sigma, x)

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The gradient of log q(x_t), -eps / sigma = (alpha x_0 - x) / sigma^2; arguments as `x0`."""
        _, alpha, sigma = self._levels(x, t)
        x0 = self.x0(x, t)
        return (self._shaped(alpha, x) * x0 - x.to(x0.dtype)) / self._shaped(sigma, x) ** 2

    def velocity(self, x: Tensor, t: Tensor | float) -> Tensor:
        """A flow's velocity eps - x_0, that of (1 - s) x_0 + s eps in s; arguments as `x0`."""
        return self._predicted("velocity", x, t)

    def F(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The raw output of EDM's networks, for the `sigma_data` of the diffusion; arguments as `x0`."""
        return self._predicted("F", x, t)

    def denoise(self, y: Tensor, sigma: Tensor | float) -> Tensor:
        """D(y; sigma): the mean of the image given y = x_0 + sigma n.

        Args:
            y: Images with noise of standard deviation sigma, [B, C, ...]: in the variance-exploding form.
            sigma: One number or [B], within the schedule's range of noise to signal.

        Returns:
            y's shape, float32 (float64 for float64).

        Raises:
            ValueError: sigma out of range, or shapes that do not fit.
        """
        rho = self._per_sample_numbers("sigma", sigma, y)
        with np.errstate(divide="ignore"):
            low, high = np.exp(-0.5 * self.diffusion.schedule.log_snr[[0, -1]])
        if not ((rho >= low * (1 - 1e-6)) & (rho <= high * (1 + 1e-6))).all():
            raise ValueError(
                f"sigma must be within the schedule's {low:.4g} to {high:.4g}, got {rho.min():.4g} to {rho.max():.4g}"
            )
        position = position_of(self.diffusion, -np.log(np.clip(rho, low, high)))
        times = time_at_position(self.diffusion.schedule, position)
        # A whole time stays whole through the rounding of the way back.
        times = np.where(np.abs(times - np.round(times)) < 1e-9 * max(1.0, times.max()), np.round(times), times)
        alpha = self._shaped(1 / np.sqrt(1 + rho**2), y)
        return self.x0(alpha * y.to(alpha.dtype), torch.from_numpy(times))

    def _predicted(self, prediction: Prediction, x: Tensor, t: Tensor | float) -> Tensor:
        """What a network of that prediction would give: x_0 = px x + pm m."""
        _, alpha, sigma = self._levels(x, t)
        x0 = self.x0(x, t)
        network = Parametrization(prediction, self.diffusion.sigma_data)
        px, pm = (self._shaped(c, x) for c in network.x0(alpha, sigma))
        return (x0 - px * x.to(x0.dtype)) / pm

    def _levels(self, x: Tensor, t: Tensor | float) -> tuple[Array, Array, Array]:
        """t, alpha and sigma, [B] each."""
        schedule = self.diffusion.schedule
        times = self._per_sample_numbers("t", t, x)
        low, high = sorted((schedule.timesteps[0], schedule.timesteps[-1]))
        if not ((times >= low) & (times <= high)).all():
            raise ValueError(
                f"t must be within the schedule's {low:g} to {high:g}, got {times.min():g} to {times.max():g}"
            )
        return times, *signal_noise_at(log_abar_at_time(schedule, times))

    def _per_sample_numbers(self, name: str, value: Tensor | float, x: Tensor) -> Array:
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(f"x must be floating point [B, C, ...], got {x.dtype} {list(x.shape)}")
        numbers = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        if numbers.shape not in ((), (1,), (x.shape[0],)):
            raise ValueError(f"{name} must be one number or [{x.shape[0]}], got shape {list(numbers.shape)}")
        if not np.isfinite(numbers).all():
            raise ValueError(f"{name} must be finite")
        return np.broadcast_to(numbers, (x.shape[0],)).copy()

    def _shaped(self, values: Array, x: Tensor) -> Tensor:
        numbers = np.broadcast_to(np.asarray(values), (x.shape[0],)).copy()
        return per_sample(torch.tensor(numbers, dtype=compute_dtype(x), device=x.device), x)
