"""k-diffusion's and EDM's functions on coefficient tables: the update of each evaluation is one fused op.

A `model` here is a denoiser D(x; sigma), called as model(x, sigma [B], **extra_args), for states x = x_0 + sigma eps.
The denoisers below make one of a network that predicts eps or v, and `NetworkFromDenoiser` goes the other way.

Noise is drawn with torch's default generator as there, so that the same seed gives the same images. There is no table
for sample_dpm_fast, sample_dpm_adaptive, sample_dpmpp_sde, sample_dpmpp_3m_sde, nor for the probability-flow
log_likelihood (see `fastdiff.likelihood.ode`).

Source: Crowson, k-diffusion, sampling.py and external.py; Karras et al. (2022), arXiv:2206.00364, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff import ops, samplers
from fastdiff.compat.ladder import ladder_of_sigmas, variance_exploding
from fastdiff.diffusion import Diffusion
from fastdiff.reference import per_sample
from fastdiff.samplers.two_stage import MAX_CHURN
from fastdiff.table import COEFFICIENTS, FLAGS, CoefficientTable

Denoiser = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None] | None
NoiseSampler = Callable[[Any, Any], Tensor] | None


@dataclass
class _Part:
    """Rows of one step: its number, its sigma, the raised sigma, and the sigma of each row's evaluation."""

    rows: Mapping[str, Any]
    step: int
    sigma: float
    sigma_hat: float
    sigma_next: float
    at: list[float]


def _pair(kind: str, levels: list[float]) -> CoefficientTable:
    """A step from the first level to the last, with the levels between for the solvers that stop there."""
    way = ladder_of_sigmas(levels, "x0")
    if kind == "dpm2":
        table = samplers.dpm2(way.diffusion, timesteps=way.timesteps[:1], final=way.final, clip=None)
    elif kind == "dpmpp_2s":
        table = samplers.dpmpp_singlestep(
            way.diffusion, timesteps=way.timesteps, final=way.final, groups=[2], clip=None
        )
    else:
        build = samplers.heun if kind == "heun" else samplers.euler
        table = build(way.diffusion, timesteps=way.timesteps, final=way.final, clip=None)
    return variance_exploding(table)


def _with_noise(table: CoefficientTable, scale: float) -> CoefficientTable:
    """The same rows, the last of which adds noise."""
    columns = dict(table.columns)
    columns["s"] = np.append(np.zeros(len(table) - 1), scale)
    return replace(table, columns=columns)


def _raise(sigma: float, sigma_hat: float, s_noise: float) -> CoefficientTable:
    """A row without an evaluation that adds the noise from a level to a higher one."""
    scale = math.sqrt(sigma_hat**2 - sigma**2) * s_noise
    return CoefficientTable({"t": [0.0], "evaluate": [0.0], "cx": [1.0], "s": [scale]}, "churn")


def _levels(sigmas: Tensor) -> list[float]:
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas must be [N + 1], falling, got shape {list(sigmas.shape)}")
    levels: list[float] = sigmas.double().cpu().tolist()
    if any(b >= a for a, b in pairwise(levels)) or levels[-1] < 0:
        raise ValueError("sigmas must fall strictly, to 0 or above")
    return levels


def _run(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    parts: list[_Part],
    extra_args: Mapping[str, Any] | None,
    callback: Callback,
    noise_sampler: NoiseSampler,
) -> Tensor:
    columns = {
        name: np.concatenate([part.rows[name] for part in parts]) for name in (*COEFFICIENTS, *FLAGS) if name != "t"
    }
    table = CoefficientTable(columns | {"t": np.zeros(len(columns["cx"]))}, "k_diffusion")
    rows = ops.table_rows(table, x.device, x.dtype)
    history = ops.new_history(x, table.history_depth) if table.history_depth else None
    base = torch.empty_like(x) if table.uses_base else None
    ones = x.new_ones(x.shape[0])
    row = 0
    with torch.no_grad():
        for part in parts:
            reported = False
            for place, at in enumerate(part.at):
                output = None
                if part.rows["evaluate"][place]:
                    output = model(x, at * ones, **dict(extra_args or {}))
                    if callback is not None and not reported:
                        callback({"x": x, "i": part.step, "sigma": sigmas[part.step],
                                  "sigma_hat": sigmas.new_tensor(part.sigma_hat), "denoised": output})  # fmt: skip
                        reported = True
                noise = None
                if table["s"][row] > 0:
                    ends = sigmas.new_tensor(part.sigma), sigmas.new_tensor(part.sigma_next)
                    noise = torch.randn_like(x) if noise_sampler is None else noise_sampler(*ends)
                x = ops.step(x, output, rows, row, noise=noise, base=base, history=history)
                row += 1
    return x


def _churned(
    kind: str, levels: list[float], s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> list[_Part]:
    parts = []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        gamma = min(s_churn / (len(levels) - 1), MAX_CHURN) if s_tmin <= sigma <= s_tmax else 0.0
        hat = sigma * (gamma + 1)
        if gamma > 0:
            parts.append(_Part(_raise(sigma, hat, s_noise).columns, i, sigma, hat, after, [hat]))
        parts.append(_step(kind, i, sigma, hat, after, after))
    return parts


def _step(kind: str, i: int, sigma: float, hat: float, target: float, after: float, noise: float = 0.0) -> _Part:
    """A step from `hat` to `target`, and noise from there to `after`."""
    middle = math.sqrt(hat * target)
    if target == 0 or kind == "euler":
        table, at = _pair("euler", [hat, target]), [hat]
    elif kind == "heun":
        table, at = _pair("heun", [hat, target]), [hat, target]
    else:
        table, at = _pair(kind, [hat, middle, target]), [hat, middle]
    return _Part((_with_noise(table, noise) if noise else table).columns, i, sigma, hat, after, at)


def _ancestral(kind: str, levels: list[float], eta: float, s_noise: float) -> list[_Part]:
    parts = []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        down, up = get_ancestral_step(sigma, after, eta)
        parts.append(_step(kind, i, sigma, sigma, down, after, up * s_noise if after > 0 else 0.0))
    return parts


def _whole(table: CoefficientTable, levels: list[float]) -> list[_Part]:
    """The rows of a multistep table, one per step."""
    table = variance_exploding(table)
    columns = table.columns
    parts = []
    for i, sigma in enumerate(levels[:-1]):
        only = {name: np.asarray(values)[i : i + 1] for name, values in columns.items()}
        parts.append(_Part(only, i, sigma, sigma, levels[i + 1], [sigma]))
    return parts


def sample_euler(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Euler's method, with churn.

    Args:
        model: D(x; sigma), called as model(x, sigma [B], **extra_args).
        x: The state at sigmas[0], [B, C, ...], float32 or float64; it is left as it is.
        sigmas: [N + 1], falling strictly, to 0 or above.
        extra_args: Keyword arguments of the model.
        callback: Called at each step, before it is taken, with a dict of x, i, sigma, sigma_hat and denoised.
        disable: Taken for k-diffusion's sake: there is no progress bar.
        s_churn: Amount of noise added before steps, at least 0; s_tmin, s_tmax: the levels where it is; s_noise: its
            standard deviation in units of what the levels call for.

    Returns:
        The state at the last sigma.

    Raises:
        ValueError: sigmas that do not fall.
    """
    parts = _churned("euler", _levels(sigmas), s_churn, s_tmin, s_tmax, s_noise)
    return _run(model, x, sigmas, parts, extra_args, callback, None)


def sample_heun(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Heun's method, with churn: algorithm 2 of Karras et al. (2022). Arguments as `sample_euler`."""
    parts = _churned("heun", _levels(sigmas), s_churn, s_tmin, s_tmax, s_noise)
    return _run(model, x, sigmas, parts, extra_args, callback, None)


def sample_dpm_2(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """DPM-Solver-2 with its second evaluation half-way in log sigma, with churn. Arguments as `sample_euler`."""
    parts = _churned("dpm2", _levels(sigmas), s_churn, s_tmin, s_tmax, s_noise)
    return _run(model, x, sigmas, parts, extra_args, callback, None)


def sample_euler_ancestral(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """Euler's method with ancestral noise.

    Args:
        model, x, sigmas, extra_args, callback, disable: as `sample_euler`.
        eta: Noise scale; 1 has the variance of the exact reverse step.
        s_noise: Factor of the noise.
        noise_sampler: (sigma, sigma_next) -> noise of x's shape; torch.randn_like when None.
    """
    parts = _ancestral("euler", _levels(sigmas), eta, s_noise)
    return _run(model, x, sigmas, parts, extra_args, callback, noise_sampler)


def sample_dpm_2_ancestral(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver-2 with ancestral noise. Arguments as `sample_euler_ancestral`."""
    parts = _ancestral("dpm2", _levels(sigmas), eta, s_noise)
    return _run(model, x, sigmas, parts, extra_args, callback, noise_sampler)


def sample_dpmpp_2s_ancestral(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2S) with ancestral noise. Arguments as `sample_euler_ancestral`."""
    parts = _ancestral("dpmpp_2s", _levels(sigmas), eta, s_noise)
    return _run(model, x, sigmas, parts, extra_args, callback, noise_sampler)


def sample_lms(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, order: int = 4,
) -> Tensor:  # fmt: skip
    """The linear multistep method of order 1 to 4, with exact integrals. Other arguments as `sample_euler`."""
    levels = _levels(sigmas)
    way = ladder_of_sigmas(levels, "x0")
    table = samplers.lms(way.diffusion, timesteps=way.timesteps, final=way.final, order=order)
    return _run(model, x, sigmas, _whole(table, levels), extra_args, callback, None)


def sample_dpmpp_2m(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M). Arguments as `sample_euler`."""
    levels = _levels(sigmas)
    way = ladder_of_sigmas(levels, "x0")
    table = samplers.dpmpp(way.diffusion, timesteps=way.timesteps, final=way.final, clip=None, lower_order_final=False)
    return _run(model, x, sigmas, _whole(table, levels), extra_args, callback, None)


def sample_dpmpp_2m_sde(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) on the reverse SDE, for eta 1, or 0, which is `sample_dpmpp_2m`.

    The steps do not overlap, so that independent noise has the distribution of k-diffusion's Brownian tree.

    Raises:
        ValueError: another eta, for which there is no table.
    """
    levels = _levels(sigmas)
    way = ladder_of_sigmas(levels, "x0")
    if eta not in (0.0, 1.0):
        raise ValueError(f"eta must be 0 or 1, got {eta!r}")
    build = samplers.dpmpp_sde if eta else samplers.dpmpp
    table = build(
        way.diffusion, timesteps=way.timesteps, final=way.final, clip=None, lower_order_final=False,
        solver_type=solver_type,
    )  # fmt: skip
    table = replace(table, columns={**table.columns, "s": table["s"] * s_noise})
    return _run(model, x, sigmas, _whole(table, levels), extra_args, callback, noise_sampler)


def edm_sampler(
    net: Any, latents: Tensor, class_labels: Tensor | None = None,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    num_steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7, S_churn: float = 0,
    S_min: float = 0, S_max: float = float("inf"), S_noise: float = 1,
) -> Tensor:  # fmt: skip
    """EDM's `edm_sampler`: Heun in float64 with churn; `net(x, sigma, class_labels)` is a denoiser with sigma_min,
    sigma_max and round_sigma.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 2; NVlabs/edm, generate.py.
    """
    sigma_min, sigma_max = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    ramp = torch.arange(num_steps, dtype=torch.float64, device=latents.device) / max(num_steps - 1, 1)
    steps = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    steps = torch.cat([torch.as_tensor(net.round_sigma(steps)), torch.zeros_like(steps[:1])])
    levels, parts = _levels(steps), []
    for i, (sigma, after) in enumerate(pairwise(levels)):
        gamma = min(S_churn / num_steps, MAX_CHURN) if S_min <= sigma <= S_max else 0.0
        hat = float(net.round_sigma(torch.as_tensor(sigma + gamma * sigma, dtype=torch.float64)))
        if hat > sigma:
            parts.append(_Part(_raise(sigma, hat, S_noise).columns, i, sigma, hat, after, [hat]))
        parts.append(_step("heun", i, sigma, hat, after, after))
    x = latents.to(torch.float64) * steps[0]

    def model(state: Tensor, sigma: Tensor) -> Tensor:
        return net(state, sigma, class_labels).to(torch.float64)  # type: ignore[no-any-return]

    return _run(model, x, steps, parts, None, None, lambda *_: randn_like(x))


def get_ancestral_step(sigma_from: float, sigma_to: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up): the level to step down to, and the noise from there to `sigma_to`."""
    if not eta:
        return sigma_to, 0.0
    up = min(sigma_to, eta * math.sqrt(sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2))
    return math.sqrt(sigma_to**2 - up**2), up


def append_zero(x: Tensor) -> Tensor:
    """x with a 0 at its end."""
    return torch.cat([x, x.new_zeros([1])])


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: torch.device | str = "cpu"
) -> Tensor:
    """[n + 1] levels uniform in sigma^(1 / rho), and 0. Source: Karras et al. (2022), eq. 5."""
    ramp = torch.linspace(0, 1, n, device=device)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return append_zero((high + ramp * (low - high)) ** rho)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: torch.device | str = "cpu") -> Tensor:
    """[n + 1] levels uniform in log sigma, and 0."""
    return append_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), n, device=device).exp())


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: torch.device | str = "cpu"
) -> Tensor:
    """[n + 1] levels with log sigma a power of a ramp, and 0."""
    ramp = torch.linspace(1, 0, n, device=device) ** rho
    return append_zero((ramp * (math.log(sigma_max) - math.log(sigma_min)) + math.log(sigma_min)).exp())


def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: torch.device | str = "cpu"
) -> Tensor:
    """[n + 1] levels of the continuous variance-preserving process, uniform in time, and 0."""
    t = torch.linspace(1, eps_s, n, device=device)
    return append_zero((torch.exp(beta_d * t**2 / 2 + beta_min * t) - 1).sqrt())


class _Discrete(nn.Module):
    """A network of discrete times as D(x; sigma), with k-diffusion's methods."""

    sigmas: Tensor
    log_sigmas: Tensor

    def __init__(self, model: Callable[..., Tensor], alphas_cumprod: Tensor, quantize: bool) -> None:
        super().__init__()
        self.inner_model = model
        sigmas = ((1 - alphas_cumprod.double()) / alphas_cumprod.double()).sqrt()
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


class DiscreteEpsDDPMDenoiser(_Discrete):
    """D(x; sigma) of a network that predicts eps, model(x, t).

    Args:
        model: The network, of states alpha x_0 + sigma eps and times in [0, T - 1].
        alphas_cumprod: [T].
        quantize: Move levels to the nearest timestep for the network.
    """

    def __init__(self, model: Callable[..., Tensor], alphas_cumprod: Tensor, quantize: bool) -> None:
        super().__init__(model, alphas_cumprod, quantize)

    def forward(self, input: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """The denoised images for states [B, C, ...] at levels [B]."""
        scale = per_sample(1 / (sigma**2 + 1).sqrt(), input)
        eps = self.inner_model(input * scale, self.sigma_to_t(sigma), **kwargs)
        return input - per_sample(sigma, input) * eps[:, : input.shape[1]]


class DiscreteVDDPMDenoiser(_Discrete):
    """D(x; sigma) of a network that predicts v; arguments as `DiscreteEpsDDPMDenoiser`."""

    def __init__(self, model: Callable[..., Tensor], alphas_cumprod: Tensor, quantize: bool) -> None:
        super().__init__(model, alphas_cumprod, quantize)

    def forward(self, input: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        """The denoised images for states [B, C, ...] at levels [B]."""
        alpha = per_sample(1 / (sigma**2 + 1).sqrt(), input)
        v = self.inner_model(input * alpha, self.sigma_to_t(sigma), **kwargs)[:, : input.shape[1]]
        return input * alpha**2 - v * per_sample(sigma, input) * alpha


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
