"""DPM-Solver with adaptive steps. No table: each sample chooses its own steps, as if it were alone in its batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastdiff.compat.k_diffusion._brownian import BrownianTreeNoiseSampler
from fastdiff.compat.k_diffusion._steps import (
    Callback,
    Denoiser,
    NoiseSampler,
    check_ends,
    default_noise_sampler,
)
from fastdiff.compat.k_diffusion.utils import append_dims

__all__ = ["sample_dpm_adaptive"]

# How near in log sigma the end counts as reached.
_ARRIVED = 1e-5
_EPS = 1e-8


@dataclass
class _Controller:
    """Step sizes of a batch by proportional, integral and derivative gains, each sample's from its own errors.

    Source: Soederlind (2003), "Digital filters in adaptive time-stepping"; k-diffusion, PIDStepSizeController.
    """

    h: Tensor
    gains: tuple[float, float, float]
    safety: float
    inverse_errors: Tensor | None = None

    def accepts(self, error: Tensor, active: Tensor) -> Tensor:
        """Whether each step is taken, [B] bool; sets the next step sizes of the active samples."""
        inverse = 1 / (error + _EPS)
        if self.inverse_errors is None:
            self.inverse_errors = torch.stack([inverse] * 3)
        past = torch.stack([inverse, self.inverse_errors[1], self.inverse_errors[2]])
        powers = past.new_tensor(self.gains)[:, None]
        # The limiter keeps the change of a step within 1 - pi/4 and 1 + pi/2.
        factor = 1 + torch.atan((past**powers).prod(dim=0) - 1)
        taken = active & (factor >= self.safety)
        self.inverse_errors = torch.where(taken, torch.stack([inverse, inverse, past[1]]), self.inverse_errors)
        self.h = torch.where(active, self.h * factor, self.h)
        return taken


@overload
def sample_dpm_adaptive(
    model: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, extra_args: Mapping[str, Any] | None = ...,
    callback: Callback = ..., disable: bool | None = ..., order: int = ..., rtol: float = ..., atol: float = ...,
    h_init: float = ..., pcoeff: float = ..., icoeff: float = ..., dcoeff: float = ..., accept_safety: float = ...,
    eta: float = ..., s_noise: float = ..., noise_sampler: NoiseSampler = ..., return_info: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def sample_dpm_adaptive(
    model: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, extra_args: Mapping[str, Any] | None = ...,
    callback: Callback = ..., disable: bool | None = ..., order: int = ..., rtol: float = ..., atol: float = ...,
    h_init: float = ..., pcoeff: float = ..., icoeff: float = ..., dcoeff: float = ..., accept_safety: float = ...,
    eta: float = ..., s_noise: float = ..., noise_sampler: NoiseSampler = ..., *, return_info: Literal[True],
) -> tuple[Tensor, dict[str, Any]]: ...  # fmt: skip
def sample_dpm_adaptive(
    model: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, extra_args: Mapping[str, Any] | None = None,
    callback: Callback = None, disable: bool | None = None, order: int = 3, rtol: float = 0.05, atol: float = 0.0078,
    h_init: float = 0.05, pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0, accept_safety: float = 0.81,
    eta: float = 0.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None, return_info: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """DPM-Solver-12 or 23 with steps whose estimated error is within a tolerance.

    k-diffusion measures one error over the whole batch; here each sample has its own error and steps, so that its image
    does not depend on its neighbours. Samples that have arrived are evaluated, and not changed, until all have.

    Args:
        model: D(x; sigma), called as model(x, sigma [B], **extra_args).
        x: The state at sigma_max, [B, C, ...].
        sigma_min: The last level. Above sigma_max, the way is from data to noise.
        sigma_max: The level of x.
        extra_args: Keyword arguments of the model.
        callback: Called after each attempt with a dict of x, i, sigma, sigma_hat, t, t_up, denoised, error, h, steps,
            nfe, n_accept, n_reject; all but x, i, denoised, steps and nfe are [B].
        disable: Taken for k-diffusion's sake.
        order: 2 or 3, of the better of the two solutions whose difference is the error.
        rtol: Tolerance relative to the state.
        atol: Tolerance by itself.
        h_init: First step in log sigma.
        pcoeff: Gain of the step's control that is proportional to the error; icoeff: to its sum; dcoeff: to its change.
        icoeff: See pcoeff.
        dcoeff: See pcoeff.
        accept_safety: A step is taken if the next one would be at least this much of it.
        eta: Scale of ancestral noise.
        s_noise: Factor of the noise.
        noise_sampler: (sigma [B], sigma_next [B]) -> noise of x's shape; a `BrownianTreeNoiseSampler` when None.
        return_info: Return a dict of steps, nfe, n_accept [B] and n_reject [B] as well.

    Returns:
        The state at sigma_min, and the dict with `return_info`.

    Raises:
        ValueError: levels that are not positive, another order, or noise on the way to noise.
        RuntimeError: the network gave NaN or infinity.

    Source: Lu et al. (2022), arXiv:2206.00927, algorithm 2 and appendix C.
    """
    start, end = check_ends(sigma_max, sigma_min, eta)
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order}")
    way = 1.0 if end < start else -1.0
    draw = noise_sampler or (BrownianTreeNoiseSampler(x, end, start) if eta else default_noise_sampler(x))
    s = torch.full((x.shape[0],), -math.log(start), dtype=torch.float64, device=x.device)
    finish = torch.full_like(s, -math.log(end))
    # Stochastic steps are of a lower order.
    scale = 1.5 if eta else order
    gains = ((pcoeff + icoeff + dcoeff) / scale, -(pcoeff + 2 * dcoeff) / scale, dcoeff / scale)
    control = _Controller(torch.full_like(s, way * abs(h_init)), gains, accept_safety)
    info: dict[str, Any] = {"steps": 0, "nfe": 0}
    info |= {name: torch.zeros_like(s, dtype=torch.int64) for name in ("n_accept", "n_reject")}
    previous = x
    with torch.no_grad():
        while bool((active := way * (finish - s) > _ARRIVED).any()):
            t = torch.where(way * (s + control.h) > way * finish, finish, s + control.h)
            # Those that have arrived stand still; a step of their own keeps their numbers finite.
            t = torch.where(active, t, s + way)
            target, noise = t, torch.zeros_like(s)
            if eta:
                target = torch.minimum(finish, -torch.log(_down(torch.exp(-s), torch.exp(-t), eta)))
                target = torch.where(active, target, t)
                noise = (torch.exp(-2 * t) - torch.exp(-2 * target)).clamp(min=0).sqrt()
            denoised, low, high = _attempt(model, x, s, target, order, extra_args or {})
            delta = (rtol * torch.maximum(low.abs(), previous.abs())).clamp(min=atol)
            error = ((low - high) / delta).flatten(1).square().mean(dim=1).sqrt().double()
            if not bool(torch.isfinite(error[active]).all()):
                raise RuntimeError("the step sizes cannot be chosen: the network gave NaN or infinity")
            taken = control.accepts(error, active)
            if bool(taken.any()):
                # As there, drawn without eta as well, so that PyTorch's generator ends where it does there.
                ends = [torch.exp(-torch.where(active, time, s)) for time in (s, t)]
                high = high + _shaped(noise * s_noise, x) * draw(*ends).to(x.dtype)
            previous = torch.where(append_dims(taken, x.ndim), low, previous)
            x = torch.where(append_dims(taken, x.ndim), high, x)
            s = torch.where(taken, t, s)
            info["n_accept"] = info["n_accept"] + taken
            info["n_reject"] = info["n_reject"] + (active & ~taken)
            info["nfe"] += order
            info["steps"] += 1
            if callback is not None:
                levels = {"sigma": torch.exp(-s), "sigma_hat": torch.exp(-s), "t": s, "t_up": s}
                state = {"x": x, "i": info["steps"] - 1, "denoised": denoised, "error": error, "h": control.h}
                callback({**levels, **state, **info})
    return (x, info) if return_info else x


def _attempt(
    model: Denoiser, x: Tensor, s: Tensor, t: Tensor, order: int, extra_args: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """The denoised image, and the states at t by orders `order` - 1 and `order`."""
    h = t - s

    def evaluate(state: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.exp(-time)
        denoised = model(state, sigma.to(x.dtype), **extra_args)
        return denoised, (state - denoised) / _shaped(sigma, x)

    def step(time: Tensor) -> Tensor:
        """What the first prediction contributes from s to a time: sigma (e^(time - s) - 1)."""
        return torch.exp(-time) * torch.expm1(time - s)

    denoised, eps = evaluate(x, s)
    if order == 2:
        first = x - _shaped(step(t), x) * eps
        middle = s + h / 2
        bend = evaluate(x - _shaped(step(middle), x) * eps, middle)[1] - eps
        return denoised, first, first - _shaped(step(t), x) * bend
    third, two_thirds = s + h / 3, s + 2 * h / 3
    first = x - _shaped(step(t), x) * eps
    bend = evaluate(x - _shaped(step(third), x) * eps, third)[1] - eps
    low = first - _shaped(1.5 * step(t), x) * bend

    def curve(time: Tensor) -> Tensor:
        return step(time) / (time - s) - torch.exp(-time)

    state = x - _shaped(step(two_thirds), x) * eps - _shaped(2 * curve(two_thirds), x) * bend
    bend = evaluate(state, two_thirds)[1] - eps
    return denoised, low, first - _shaped(1.5 * curve(t), x) * bend


def _down(sigma: Tensor, after: Tensor, eta: float) -> Tensor:
    """`get_ancestral_step`'s level to step down to, [B]."""
    up = torch.minimum(after, eta * (after**2 * (sigma**2 - after**2) / sigma**2).sqrt())
    return (after**2 - up**2).sqrt()


def _shaped(values: Tensor, x: Tensor) -> Tensor:
    return append_dims(values.to(x.dtype), x.ndim)
